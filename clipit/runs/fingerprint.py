"""Fingerprint of everything that determines a run's results."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipit.artifacts import fingerprint
from clipit.config.effects import select_keys
from clipit.config.run import RunConfig
from clipit.training.active_terms import sees_vlm, uses_reports
from clipit.training.arms import resolve_arm, second_teacher
from clipit.training.teaching import REPORT_LABELS
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
    second = workspace.for_config(second_teacher(config)).vlm.fingerprint if config.second_vlm is not None else None
    return RunFingerprint(
        select_keys(config, "results"),
        {
            "tiles": tiles.fingerprint,
            "labels of tiles": fingerprint([tiles.labels.tolist(), tiles.groups.tolist()]),
            "backbone": backbone_fingerprint,
            "VLM": workspace.vlm.fingerprint if sees_vlm(config) else None,
            "second VLM": second,
            "snippets": fingerprint(workspace.snippet_inputs()) if uses_reports(config) else None,
            "prompts": workspace.prompts.hash if workspace.prompts else None,
            "arm image_only": _self_training(config),
            "labels of reports": _report_labels(config, workspace),
        },
    )


def _self_training(config: RunConfig) -> str | None:
    """Training keys of the arm image_only, if the soft labels come from a run of it."""
    if config.soft_labels.source != "image_only":
        return None
    image_only = resolve_arm(config.model_copy(update={"arm": "image_only"}))
    return fingerprint(select_keys(image_only.training, "results"))


def _report_labels(config: RunConfig, workspace: Workspace) -> str | None:
    """Labels of the reports, if they are distilled."""
    if config.distillation.tiles == "none" or config.distillation.target not in REPORT_LABELS:
        return None
    return fingerprint([[report.report_id, report.label] for report in workspace.reports.reports])
