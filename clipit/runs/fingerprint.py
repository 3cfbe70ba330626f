"""Fingerprint of everything that determines a run's results: keys, and the contents of all inputs, not their paths."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipit.config.effects import fingerprint_keys, is_within
from clipit.config.load import current_name
from clipit.config.run import BackboneConfig, RunConfig, VLMConfig
from clipit.output_files.artifacts import file_sha256, fingerprint
from clipit.output_files.differences import list_differences
from clipit.training.auto_precision import resolve_precision
from clipit.training.terms.term_table import active_terms, unused_keys, uses_reports, uses_vlm
from clipit.workspace.workspace import Workspace

_MPP = "mpp of tiles"
"""Input that records of earlier versions lack; without it, they match any resolution."""


@dataclass(frozen=True)
class RunFingerprint:
    """Configuration keys and inputs that determine a run's results.

    Attributes:
        keys: Values of the configuration keys that change results, by dotted key.
        inputs: Fingerprints of the data and models that the run reads (None if unused), the class names, and the
            median resolution of the tiles.
        unused: Keys and sections without effect on this run; records of earlier versions may contain them.
        defaults: Keys that are omitted at their default, with that default; see `clipit.config.effects.LaterKey`.
        names: Configured names of the models by dotted key, which earlier versions recorded with their paths.
    """

    keys: Mapping[str, Any]
    inputs: Mapping[str, str | list[str] | None]
    unused: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def value(self) -> str:
        """Fingerprint of all keys and inputs, as 16 hexadecimal digits."""
        return fingerprint([self.keys, self.inputs])

    def differences(self, record: Mapping[str, Any]) -> list[str]:
        """List the keys and inputs that differ from those in a `run.json` record, with both values."""
        recorded = {current_name(key): value for key, value in _mapping(record.get("keys")).items()}
        recorded = {key: value for key, value in recorded.items() if not is_within(key, self.unused)}
        by_path = [key for key, name in self.names.items() if key in self.keys and recorded.get(key) == name]
        recorded |= {key: self.keys[key] for key in by_path}
        current = {**self.keys, **{key: value for key, value in self.defaults.items() if key in recorded}}
        recorded_inputs = _mapping(record.get("inputs"))
        inputs = {key: value for key, value in self.inputs.items() if key != _MPP or key in recorded_inputs}
        return list_differences(recorded, current) + list_differences(recorded_inputs, inputs)

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Check whether a `run.json` record belongs to a run with this fingerprint."""
        if record.get("fingerprint") == self.value:
            return True
        complete = all(isinstance(record.get(section), dict) for section in ("keys", "inputs"))
        return complete and not self.differences(record)


def run_fingerprint(config: RunConfig, workspace: Workspace, backbone_fingerprint: str) -> RunFingerprint:
    """Compute the fingerprint of a run.

    Args:
        config: Configuration of the run, with its arm resolved.
    """
    config = resolve_precision(config)
    tiles = workspace.tiles(config.seed)
    models = {"vlm": config.vlm, "second_vlm": config.second_vlm, "backbone": config.backbone}
    names = {f"{key}.name": _model_name(model) for key, model in models.items() if model is not None}
    selected = fingerprint_keys(config, unused=unused_keys(config))
    return RunFingerprint(
        selected.keys | {key: name for key, name in names.items() if key in selected.keys},
        {
            "tiles": tiles.fingerprint,
            "labels of tiles": fingerprint([tiles.labels.tolist(), tiles.groups.tolist()]),
            "classes of tiles": list(tiles.classes),
            _MPP: None if tiles.median_mpp is None else f"{tiles.median_mpp:g}",
            "backbone": backbone_fingerprint,
            "VLM": workspace.vlm.fingerprint if uses_vlm(config) else None,
            "snippets": fingerprint(workspace.snippet_inputs()) if uses_reports(config) else None,
            "prompts": workspace.prompts.hash if workspace.prompts else None,
            **{name: value for term in active_terms(config) for name, value in term.fingerprints(workspace).items()},
        },
        selected.unused,
        selected.defaults,
        {f"{key}.name": model.name for key, model in models.items() if model is not None},
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _model_name(config: VLMConfig | BackboneConfig) -> str:
    """Return a model's name without local paths; for a folder, add a fingerprint of its configuration files.

    The weights are part of `RunFingerprint.inputs`.
    """
    scheme, _, rest = config.name.partition(":")
    named = Path(rest if scheme in ("clip", "hf-hub", "transformers") else config.name)
    folder = named if config.path is None else Path(config.path)
    if not folder.is_dir():
        architecture, _, file = rest.partition("/")
        if scheme == "open_clip" and Path(file).is_file():
            return f"{scheme}:{architecture}/local file"
        return config.name if config.path is not None or not named.is_file() else "local file"
    descriptions = {path.name: file_sha256(path) for path in sorted(folder.glob("*config.json"))}
    return f"{'local folder' if config.path is None else config.name} {fingerprint(descriptions)}"
