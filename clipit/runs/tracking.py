"""Experiment trackers of a run: what they are told, and the command that opens them."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipit.config.effects import select_keys
from clipit.config.run import RunConfig
from clipit.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

logger = logging.getLogger(__name__)


def start_trackers(accelerator: "Accelerator", config: RunConfig, folder: Path) -> None:
    """Start the configured tracker, if any, and log the command that opens it once for all runs beside this one.

    The runs of a comparison or sweep share `tracking.group`; for TensorBoard, the group is their common folder.

    Args:
        accelerator: Accelerator made with `log_with` of this configuration.
        config: Run configuration with its arm resolved.
        folder: Folder of the run.

    Raises:
        ConfigError: The tracker is not installed.
    """
    tracker = config.tracking.tracker
    if tracker == "none":
        return
    if not accelerator.log_with:
        raise ConfigError(f"tracker {tracker} is not installed", where="tracking.tracker", fix=f"pip install {tracker}")
    name, group = f"{config.name}/{folder.name}", config.tracking.group or config.name
    options = {
        "wandb": {
            "mode": config.tracking.wandb_mode, "name": name, "group": group, "job_type": config.arm or "custom",
            "dir": str(folder),
        }
    }  # fmt: skip
    accelerator.init_trackers(config.tracking.project, _scalars(config), options)
    if accelerator.is_main_process and (line := opening_command(config, folder)):
        _log_once(line)


def _scalars(config: RunConfig) -> dict[str, Any]:
    """Return the keys that change the classifier and have a scalar value, which every tracker accepts; no path."""
    keys = {key: value for key, value in select_keys(config, "results").items() if isinstance(value, str | int | float)}
    return {"arm": config.arm or "custom", "seed": config.seed} | keys


def opening_command(config: RunConfig, folder: Path) -> str:
    """Return the command that opens the tracker for all runs beside this one; empty if wandb itself prints an address.

    Args:
        config: Run configuration.
        folder: Folder of the run.
    """
    runs = shlex.quote(str(folder.parent))
    if config.tracking.tracker == "tensorboard":
        return f"tensorboard --logdir {runs}"
    if config.tracking.tracker == "wandb" and config.tracking.wandb_mode == "offline":
        return f"wandb sync {runs}/*/wandb/offline-run-*"
    if config.tracking.tracker == "trackio":
        return f"trackio show --project {shlex.quote(config.tracking.project)}"
    return ""


@cache
def _log_once(line: str) -> None:
    logger.info(f"to open the tracker: {line}")


def log_test_scores(trackers: "Sequence[GeneralTracker]", results: Mapping[str, Any], step: int) -> None:
    """Log the test scores of a run as `test_<metric>`, the zero-shot ones as `test_zero_shot_<metric>`.

    Args:
        trackers: Open trackers.
        results: Content of results.json; empty outside the main process.
        step: Last step of the training.
    """
    test = results.get("splits", {}).get("test", {})
    scores = {
        f"test_{prefix}{name}": metric["value"]
        for prefix, metrics in (("", test), ("zero_shot_", test.get("zero_shot", {})))
        for name, metric in metrics.get("metrics", {}).items()
        if metric["value"] is not None
    }
    for tracker in trackers if scores else ():
        tracker.log(scores, step=step)


def finish_trackers(trackers: "Sequence[GeneralTracker]") -> None:
    """Close the trackers, without ending the process group as `Accelerator.end_training` does."""
    for tracker in trackers:
        tracker.finish()
