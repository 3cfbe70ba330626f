"""Fingerprint of everything that determines a run's results: keys, and the contents of all inputs, not their paths."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipit.config.effects import select_keys
from clipit.config.load import current_name
from clipit.config.run import BackboneConfig, RunConfig, VLMConfig
from clipit.output_files.artifacts import file_sha256, fingerprint
from clipit.output_files.differences import list_differences
from clipit.training.auto_precision import resolve_precision
from clipit.training.terms.term_table import active_terms, uses_own_report_labels, uses_reports, uses_vlm
from clipit.workspace.workspace import Workspace


@dataclass(frozen=True)
class RunFingerprint:
    """Configuration keys and inputs that determine a run's results.

    Attributes:
        keys: Values of the configuration keys that change results, by dotted key.
        inputs: Fingerprints of the data and models that the run reads (None if unused), and the class names.
        unused: Keys without effect on this run; records of earlier versions may contain them.
    """

    keys: Mapping[str, Any]
    inputs: Mapping[str, str | list[str] | None]
    unused: frozenset[str] = frozenset()

    @property
    def value(self) -> str:
        """Fingerprint of all keys and inputs, as 16 hexadecimal digits."""
        return fingerprint([self.keys, self.inputs])

    def differences(self, record: Mapping[str, Any]) -> list[str]:
        """List the keys and inputs that differ from those in a `run.json` record, with both values."""
        lines = []
        for section, current in (("keys", self.keys), ("inputs", self.inputs)):
            recorded = record.get(section)
            values = recorded if isinstance(recorded, dict) else {}
            named = {current_name(key): value for key, value in values.items()}
            lines += list_differences({key: value for key, value in named.items() if key not in self.unused}, current)
        return lines

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
    keys = select_keys(config, "results") | names
    # Keys without effect on this run. Excluding those that a later version added keeps older runs valid.
    unused = {"pairing.candidates", "pairing.ef_search"} if config.pairing.index == "Flat" else set()
    if not config.training.compile:
        unused.add("training.compile")
    if not config.bags.whole_entries:
        unused.add("bags.whole_entries")
    if not uses_vlm(config):
        unused |= {key for key in keys if key.startswith("vlm.")}
    if not uses_own_report_labels(config):
        unused |= {key for key in keys if key.startswith("own_report.")}
    keys = {key: value for key, value in keys.items() if key not in unused}
    return RunFingerprint(
        keys,
        {
            "tiles": tiles.fingerprint,
            "labels of tiles": fingerprint([tiles.labels.tolist(), tiles.groups.tolist()]),
            "classes of tiles": list(tiles.classes),
            "backbone": backbone_fingerprint,
            "VLM": workspace.vlm.fingerprint if uses_vlm(config) else None,
            "snippets": fingerprint(workspace.snippet_inputs()) if uses_reports(config) else None,
            "prompts": workspace.prompts.hash if workspace.prompts else None,
            **{name: value for term in active_terms(config) for name, value in term.fingerprints(workspace).items()},
        },
        frozenset(unused),
    )


def _model_name(config: VLMConfig | BackboneConfig) -> str:
    """Return a model's name without local paths; for a folder, add a fingerprint of its configuration files.

    The weights are part of `RunFingerprint.inputs`.
    """
    named = Path(config.name.removeprefix("clip:").removeprefix("transformers:"))
    folder = named if config.path is None else Path(config.path)
    if not folder.is_dir():
        return config.name if config.path is not None or not named.is_file() else "local file"
    descriptions = {path.name: file_sha256(path) for path in sorted(folder.glob("*config.json"))}
    return f"{'local folder' if config.path is None else config.name} {fingerprint(descriptions)}"
