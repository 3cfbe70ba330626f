"""Experiment trackers: log the configuration and scores of runs and adaptations, and show how to open the tracker."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipit.config.effects import select_keys
from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import ConfigError

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

logger = logging.getLogger(__name__)


def start_trackers(config: RunConfig, folder: Path, facts: Mapping[str, Any], arm: str) -> "list[GeneralTracker]":
    """Start the configured tracker, if any; log once how to open it for all runs in the parent folder.

    The runs of a comparison or sweep, and the adaptations of a study, share `tracking.group`; for TensorBoard, the
    group is their common folder.

    Args:
        folder: Folder of the run or adaptation.
        facts: Keys that determine the results; only scalars, which every tracker accepts, are recorded.
        arm: Name of the arm, which is the job type in wandb.

    Returns:
        The open trackers; empty outside the main process.

    Raises:
        ConfigError: The tracker is not installed.
    """
    tracker = config.tracking.tracker
    if tracker == "none":
        return []
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers

    if not filter_trackers([tracker], folder):
        raise ConfigError(f"tracker {tracker} is not installed", where="tracking.tracker", fix=f"pip install {tracker}")
    if not get_processes().main:
        return []
    name, group = f"{config.name}/{folder.name}", config.tracking.group or config.name
    options = {
        "wandb": {
            "mode": config.tracking.wandb_mode, "name": name, "group": group, "job_type": arm, "dir": str(folder),
        },
        "tensorboard": {"logging_dir": str(folder)},
    }  # fmt: skip
    started: GeneralTracker = LOGGER_TYPE_TO_CLASS[tracker](config.tracking.project, **options.get(tracker, {}))
    started.start()
    started.store_init_configuration(
        {key: value for key, value in facts.items() if isinstance(value, str | int | float)}
    )
    if line := opening_command(config, folder):
        _log_once(line)
    return [started]


def tracked_keys(config: RunConfig) -> dict[str, Any]:
    """Return the arm, the seed and the keys that change results, without paths."""
    return {"arm": config.arm or "custom", "seed": config.seed} | select_keys(config, "results")


def opening_command(config: RunConfig, folder: Path) -> str:
    """Return the command that opens the tracker for all runs in the parent folder; "" if none is needed."""
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


def flat_test_scores(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the test scores of a run as `test_<metric>`, and zero-shot scores as `test_zero_shot_<metric>`.

    Args:
        results: Content of results.json; empty outside the main process.
    """
    test = results.get("splits", {}).get("test", {})
    return {
        f"test_{prefix}{name}": metric["value"]
        for prefix, metrics in (("", test), ("zero_shot_", test.get("zero_shot", {})))
        for name, metric in metrics.get("metrics", {}).items()
        if metric["value"] is not None
    }


def finish_trackers(trackers: "Sequence[GeneralTracker]", scores: Mapping[str, float], step: int) -> None:
    """Log the final scores and close the trackers; unlike `Accelerator.end_training`, keep the process group."""
    for tracker in trackers:
        if scores:
            tracker.log(dict(scores), step=step)
        tracker.finish()
