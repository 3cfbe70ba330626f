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
    """What determines a run's results.

    Attributes:
        keys: Keys of the configuration that change results, dotted, with their values.
        inputs: Fingerprints of the data and models that the run reads; None where it reads none.
    """

    keys: Mapping[str, Any]
    inputs: Mapping[str, str | None]

    @property
    def value(self) -> str:
        """16 hexadecimal digits over all of it."""
        return fingerprint([self.keys, self.inputs])

    def differences(self, record: Mapping[str, Any]) -> list[str]:
        """Keys and inputs in which the record of another run (its `run.json`) differs."""
        parts = ((self.keys, record.get("keys", {})), (self.inputs, record.get("inputs", {})))
        names: list[str] = []
        for now, before in parts:
            names += [name for name in sorted({*now, *before}) if now.get(name) != before.get(name)]
        return names


def run_fingerprint(config: RunConfig, workspace: Workspace, backbone_fingerprint: str) -> RunFingerprint:
    """Collect what determines a run's results.

    Args:
        config: Configuration of the run, its arm resolved.
        workspace: Inputs of this configuration.
        backbone_fingerprint: Fingerprint of the backbone as loaded.
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
