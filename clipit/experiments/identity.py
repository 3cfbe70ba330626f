"""Whose folder is it? A run's folder belongs to all that its numbers come from, and to nothing else."""

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml

from clipit.artifacts import fingerprint, git_commit, make_folder, read_json, versions, whole_file, write_json
from clipit.config import Config
from clipit.errors import ArtifactError, explain
from clipit.experiments.materials import Materials
from clipit.experiments.teaching import second_teacher
from clipit.training.arms import resolve_arm
from clipit.training.checkpoints import latest_checkpoint
from clipit.training.teaching import REPORT_LABELS, sees_vlm, uses_reports

# Keys that change where or how fast a run goes, or what is said of it, but none of its numbers.
_TOP = {
    "output", "tracking", "evaluation", "note", "arms", "arm", "name", "comparison", "probing", "zero_shot",
    "overrides", "leaks", "robustness",
}  # fmt: skip
_SPEED: dict[str, set[str]] = {
    "training": {"threads", "cache_tiles", "log_every", "checkpoint_every"},
    "vlm": {"batch_size"},
    "pairing": {"block"},
}


_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")  # see clipit.artifacts.whole_file


def run_folder(config: Config) -> Path:
    """Where a run lies."""
    return config.output / "runs" / config.name / f"{config.arm or 'custom'}-seed{config.seed}"


def run_mark(config: Config, materials: Materials, backbone_fingerprint: str) -> str:
    """Stands for all that a run's numbers come from: keys, tiles and labels, models, reports, prompts.

    Args:
        config: Its arm resolved.
        materials: Of this configuration.
        backbone_fingerprint: Of the backbone as loaded.
    """
    keys: dict[str, Any] = config.model_dump(mode="json", exclude=_TOP)
    for section, names in _SPEED.items():
        keys[section] = {key: value for key, value in keys[section].items() if key not in names}
    tiles = materials.tiles(config.seed)
    second = materials.serving(second_teacher(config)).vlm.fingerprint if config.second_vlm is not None else None
    return fingerprint(
        {
            "keys": keys,
            "tiles": tiles.fingerprint,
            "labels": [tiles.labels.tolist(), tiles.groups.tolist()],
            "backbone": backbone_fingerprint,
            "vlm": materials.vlm.fingerprint if sees_vlm(config) else None,
            "second_vlm": second,
            "snippets": materials.snippet_inputs() if uses_reports(config) else None,
            "prompts": materials.prompts.hash if materials.prompts else None,
            "self_training": _image_only_keys(config),
            "report_labels": _report_labels(config, materials),
        }
    )


def _image_only_keys(config: Config) -> dict[str, Any] | None:
    """What the run that soft labels come from is made by, where they come from one."""
    if config.soft_labels.source != "image_only":
        return None
    other = resolve_arm(config.model_copy(update={"arm": "image_only"}))
    return other.training.model_dump(mode="json", exclude=_SPEED["training"])


def _report_labels(config: Config, materials: Materials) -> str | None:
    """The reports' own labels, where they are taught."""
    if config.distillation.tiles == "none" or config.distillation.target not in REPORT_LABELS:
        return None
    return fingerprint([[report.report_id, report.label] for report in materials.reports.reports])


def check_mark(folder: Path, mark: str) -> None:
    """Refuse a folder that belongs to another run.

    Raises:
        ArtifactError: It does, or there is no run.
    """
    file = folder / "run.json"
    if not file.is_file():
        raise ArtifactError(explain("no run here", where=folder, fix="train it first: scripts/train.py --config ..."))
    if read_json(file, "choose another --name, or delete the run's folder").get("fingerprint") != mark:
        raise ArtifactError(
            explain(
                "this run's folder belongs to another configuration, "
                "or to other tiles, labels, models, reports or prompts",
                where=folder / "config.yaml",
                fix="choose another --name, or delete the folder",
            )
        )


def _sweep(folder: Path) -> None:
    """Delete what a killed process was writing. The run's lock is held, so that the writer is gone.

    Predictions on shifted sets are written outside of the lock: theirs stay while their process lives.
    """
    for left in folder.rglob(".*.tmp"):
        found = _TEMPORARY.fullmatch(left.name)
        if found and not (left.name.startswith(".predictions_shifted") and _lives(int(found[1]))):
            left.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 asks and does nothing
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def claim(folder: Path, config: Config, mark: str) -> None:
    """Take the folder for this run, or recognise it as this run's; one in which nothing was made yet is taken over.

    Raises:
        ArtifactError: It belongs to another run, or nothing says whose it is.
    """
    _sweep(folder)
    made = (folder / "classifier").is_dir() or (folder / "results.json").is_file()
    if made or latest_checkpoint(folder / "checkpoints") is not None:
        if not (folder / "run.json").is_file():
            raise ArtifactError(
                explain(
                    "a run stands here without run.json, which says what it was made from",
                    where=folder,
                    fix="choose another --name, put run.json back, or delete the folder",
                )
            )
        check_mark(folder, mark)
        return
    make_folder(folder)
    with whole_file(folder / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    facts = {"fingerprint": mark, "commit": git_commit(), "versions": versions(), "command": shlex.join(sys.argv)}
    write_json(folder / "run.json", facts)
