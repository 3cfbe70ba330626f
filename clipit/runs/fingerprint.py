"""Whose folder is it? A run's folder belongs to all that its numbers come from, and to nothing else."""

from typing import Any

from clipit.artifacts import fingerprint
from clipit.config.run import RunConfig
from clipit.training.active_terms import sees_vlm, uses_reports
from clipit.training.arms import resolve_arm, second_teacher
from clipit.training.teaching import REPORT_LABELS
from clipit.workspace.workspace import Workspace

# Keys that change where or how fast a run goes, or what is said of it, but none of its numbers.
_TOP = {
    "output", "tracking", "evaluation", "note", "arms", "arm", "name", "overrides", "leaks",
}  # fmt: skip
_SPEED: dict[str, set[str]] = {
    "training": {"threads", "cache_tiles", "log_every", "checkpoint_every"},
    "vlm": {"batch_size"},
    "pairing": {"block"},
}


def run_fingerprint(config: RunConfig, workspace: Workspace, backbone_fingerprint: str) -> str:
    """Stands for all that a run's numbers come from: keys, tiles and labels, models, reports, prompts.

    Args:
        config: Its arm resolved.
        workspace: Of this configuration.
        backbone_fingerprint: Of the backbone as loaded.
    """
    keys: dict[str, Any] = config.model_dump(mode="json", exclude=_TOP)
    for section, names in _SPEED.items():
        keys[section] = {key: value for key, value in keys[section].items() if key not in names}
    tiles = workspace.tiles(config.seed)
    second = workspace.for_config(second_teacher(config)).vlm.fingerprint if config.second_vlm is not None else None
    return fingerprint(
        {
            "keys": keys,
            "tiles": tiles.fingerprint,
            "labels": [tiles.labels.tolist(), tiles.groups.tolist()],
            "backbone": backbone_fingerprint,
            "vlm": workspace.vlm.fingerprint if sees_vlm(config) else None,
            "second_vlm": second,
            "snippets": workspace.snippet_inputs() if uses_reports(config) else None,
            "prompts": workspace.prompts.hash if workspace.prompts else None,
            "self_training": _image_only_keys(config),
            "report_labels": _report_labels(config, workspace),
        }
    )


def _image_only_keys(config: RunConfig) -> dict[str, Any] | None:
    """What the run that soft labels come from is made by, where they come from one."""
    if config.soft_labels.source != "image_only":
        return None
    other = resolve_arm(config.model_copy(update={"arm": "image_only"}))
    return other.training.model_dump(mode="json", exclude=_SPEED["training"])


def _report_labels(config: RunConfig, workspace: Workspace) -> str | None:
    """The reports' own labels, where they are taught."""
    if config.distillation.tiles == "none" or config.distillation.target not in REPORT_LABELS:
        return None
    return fingerprint([[report.report_id, report.label] for report in workspace.reports.reports])
