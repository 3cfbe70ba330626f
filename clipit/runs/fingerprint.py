"""Fingerprint of everything that determines a run's results."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipit.artifacts import fingerprint
from clipit.config.effects import select_keys
from clipit.config.run import RunConfig
from clipit.training.terms.table import active_terms, uses_reports, uses_vlm
from clipit.workspace.workspace import Workspace


@dataclass(frozen=True)
class RunFingerprint:
    """Configuration keys and input fingerprints that determine a run's results.

    Attributes:
        keys: Values of the configuration keys that change results, by dotted key.
        inputs: Fingerprints of the data and models that the run reads; None for those that it does not use.
    """

    keys: Mapping[str, Any]
    inputs: Mapping[str, str | None]

    @property
    def value(self) -> str:
        """Fingerprint of all keys and inputs, as 16 hexadecimal digits."""
        return fingerprint([self.keys, self.inputs])

    def differences(self, record: Mapping[str, Any]) -> list[str]:
        """List the keys and inputs that differ from the `run.json` record of another run."""
        parts = ((self.keys, record.get("keys", {})), (self.inputs, record.get("inputs", {})))
        names: list[str] = []
        for current, recorded in parts:
            names += [name for name in sorted({*current, *recorded}) if current.get(name) != recorded.get(name)]
        return names


def run_fingerprint(config: RunConfig, workspace: Workspace, backbone_fingerprint: str) -> RunFingerprint:
    """Compute the fingerprint of a run.

    Args:
        config: Configuration of the run, with its arm resolved.
        workspace: Workspace of this configuration.
        backbone_fingerprint: Fingerprint of the loaded backbone.
    """
    tiles = workspace.tiles(config.seed)
    return RunFingerprint(
        select_keys(config, "results"),
        {
            "tiles": tiles.fingerprint,
            "labels of tiles": fingerprint([tiles.labels.tolist(), tiles.groups.tolist()]),
            "backbone": backbone_fingerprint,
            "VLM": workspace.vlm.fingerprint if uses_vlm(config) else None,
            "snippets": fingerprint(workspace.snippet_inputs()) if uses_reports(config) else None,
            "prompts": workspace.prompts.hash if workspace.prompts else None,
            **{name: value for term in active_terms(config) for name, value in term.fingerprints(workspace).items()},
        },
    )
