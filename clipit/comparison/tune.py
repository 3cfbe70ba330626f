"""The search that a comparison's learning rates, steps and weights come from: the same grid for every arm."""

import logging
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from clipit.artifacts import git_commit, versions, write_json
from clipit.comparison.grid import RATE, STEPS, Trial, described, made_with, trials_of
from clipit.config.comparison import ComparisonConfig
from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import DataError, explain
from clipit.reporting.tables import markdown_table
from clipit.runs.folder import read_training
from clipit.runs.train import train_run
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)

Found = list[tuple[Trial, list[float]]]
"""Trials of an arm, each with its score per tuning seed."""


def tune(config: RunConfig, comparison: ComparisonConfig) -> Path:
    """Try every point of the grid (`comparison.learning_rates`, `.steps`, `.grid`) with every arm and tuning seed.

    The trials are ordinary runs in `<output>/tuning`, evaluated on the validation part only: no test tile is
    read. Those finished are skipped. An arm that lacks a term has no trials of that term's keys.

    Returns:
        tuning.json: all scores, the choice per arm, and the `arms` block for the configuration.
    """
    c = comparison
    searched = {RATE, STEPS, *c.grid}
    base = config.model_copy(
        update={
            "output": config.output / "tuning",
            # The grid sets these; a value from the command line would make all trials the same.
            "overrides": tuple(k for k in config.overrides if k not in searched),
            "evaluation": config.evaluation.model_copy(update={"splits": ("validation",), "bootstrap": 0}),
        }
    )
    workspace = Workspace(base)
    scores: dict[str, Found] = {}
    for arm in c.arms:
        for values in trials_of(config, comparison, arm):
            own = dict(config.arms.get(arm, {"base": arm})) | dict(values)
            trial = base.model_copy(
                update={"name": _folder(config.name, values), "arm": arm, "arms": {**config.arms, arm: own}}
            )
            found = [
                _validation_score(train_run(trial.model_copy(update={"seed": s}), workspace)) for s in c.tuning_seeds
            ]
            scores.setdefault(arm, []).append((values, found))
            logger.info(f"{arm}, {described(values)}: {mean(found):.4f}")
    path = config.output / "tuning" / f"{config.name}.json"
    if get_processes().main:
        _write(config, comparison, workspace, scores, path)
        logger.info(_text(scores))
    return path


def best_trial(found: Found) -> Trial:
    """The trial with the best mean score; of equal ones fewer steps, then the lower learning rate, then the first."""
    return min(found, key=lambda one: (-mean(one[1]), one[0][STEPS], one[0][RATE]))[0]


def _folder(name: str, values: Trial) -> str:
    parts = [f"lr{values[RATE]:g}-steps{values[STEPS]}"]
    parts += [f"{key.rpartition('.')[2]}{value}" for key, value in values.items() if key not in (RATE, STEPS)]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join([name, *parts]))


def _validation_score(folder: Path) -> float:
    """The monitored metric at the step that the run chose."""
    found = read_training(folder)["score"]
    if found is None:
        raise DataError(
            explain(
                "there is no validation score to choose by",
                where=folder,
                fix="keep labels in the validation part, in two classes at least: tiles.labels",
            )
        )
    return float(found)


def _write(
    config: RunConfig, comparison: ComparisonConfig, workspace: Workspace, scores: Mapping[str, Found], path: Path
) -> None:
    block: dict[str, Any] = {
        arm: dict(config.arms.get(arm, {"base": arm})) | dict(best_trial(found)) for arm, found in scores.items()
    }
    listed = {
        arm: [{"keys": dict(values), "scores": of_seeds} for values, of_seeds in found] for arm, found in scores.items()
    }
    found = {
        "commit": git_commit(),
        "command": shlex.join(sys.argv),
        "versions": versions(),
        "seeds": list(comparison.tuning_seeds),
        "monitor": config.training.monitor,
        "tiles": workspace.all_tiles.fingerprint,
        "vlm": workspace.vlm.fingerprint,
        "made_with": made_with(config),
        "trials": listed,
        "arms": block,
    }
    write_json(path, found)
    path.with_suffix(".yaml").write_text(yaml.safe_dump({"arms": block}, sort_keys=False), encoding="utf-8")


def _text(scores: Mapping[str, Found]) -> str:
    rows = []
    for arm, found in scores.items():
        best = best_trial(found)
        means = sorted((mean(of_seeds) for _, of_seeds in found), reverse=True)
        rows.append([arm, str(len(found)), f"{100 * means[0]:.1f}", f"{100 * means[-1]:.1f}", described(best)])
    return markdown_table(["arm", "trials", "best", "worst", "chosen"], rows)
