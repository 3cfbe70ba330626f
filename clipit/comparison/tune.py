"""Hyperparameter tuning: the same grid search for every arm of a comparison, on seeds that are never reported."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from clipit.comparison.agents import additional_agents
from clipit.comparison.judged_arms import check_controls
from clipit.comparison.search_grid import RATE, STEPS, GridPoint, format_point, grid_points, tuning_keys
from clipit.config.comparison import ComparisonConfig
from clipit.config.load import without
from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import DataError, DivergenceError, shortlist
from clipit.output_files.artifacts import write_json
from clipit.output_files.leftovers import delete_leftovers
from clipit.output_files.whole_files import write_text
from clipit.progress import RunCounter
from clipit.reporting.tables import LABELS, markdown_table, percent
from clipit.runs.folder import is_trained, read_training, run_folder
from clipit.runs.search import SharedSearch, Trial
from clipit.runs.train import train_run
from clipit.training.arms import resolve_arm
from clipit.training.monitor import LABEL_FREE
from clipit.training.terms.term_table import models_of, uses_reports
from clipit.versions import command_line, git_commit, versions
from clipit.workspace.preflight import check_inputs
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoredPoint:
    """Grid point with its validation score for each tuning seed; None if the training diverged.

    Attributes:
        reasons: Reason for each diverged training, by seed.
    """

    values: GridPoint
    scores: Sequence[float | None]
    reasons: Mapping[int, str] = field(default_factory=dict)


def tune(config: RunConfig, comparison: ComparisonConfig, agents: int = 1) -> Path:
    """Train every arm at each grid point with each tuning seed, and choose each arm's point by its validation score.

    The grid is `comparison.learning_rates` x `.steps` x `.grid`. Trials are ordinary runs in the output folder, but
    evaluated only on the validation split: no test tile is read. They share the artefacts of the output folder, such as
    embeddings, with comparisons. Several agents may share the trials; finished trials are skipped.

    Args:
        config: Configuration that all trials share.
        comparison: Arms, grid and tuning seeds.
        agents: Number of processes on this machine that share the trials.

    Returns:
        JSON file with all scores and, in `arms`, each arm's best point as configuration keys.

    Raises:
        DivergenceError: The training diverged at every grid point of an arm.
    """
    with additional_agents(agents, "tune", config, comparison):
        finished = run_trials(config, comparison)
    workspace, scored = finished.workspace, finished.scored
    path = config.output / "tuning" / f"{config.name}.json"
    _check_converged(scored)
    if get_processes().main:
        _write(config, comparison, workspace, scored, path)
        logger.info(_table(scored, finished.monitors))
    return path


@dataclass(frozen=True)
class FinishedTrials:
    """Finished trials of a search: the workspace, and by arm the scored grid points and the metric of the scores."""

    workspace: Workspace
    scored: Mapping[str, Sequence[ScoredPoint]]
    monitors: Mapping[str, str]


def run_trials(config: RunConfig, comparison: ComparisonConfig) -> FinishedTrials:
    """Run all trials, sharing them with other agents."""
    searched = {RATE, STEPS, *comparison.grid}
    unused = [key for key in config.overrides if key in searched]
    if unused and get_processes().main:
        logger.warning(
            f"ignoring keys that the search sets: {shortlist(unused)}; change comparison.learning_rates, "
            "comparison.steps or comparison.grid instead"
        )
    base = config.model_copy(
        update={
            # The grid sets these keys; values from the command line would make all trials identical.
            "overrides": tuple(key for key in config.overrides if key not in searched),
            "evaluation": config.evaluation.model_copy(
                update={"splits": ("validation",), "bootstrap": 0, "page": False}
            ),
        }
    )
    workspace = Workspace(base)
    seeds = comparison.tuning_seeds
    points = {arm: grid_points(config, comparison, arm) for arm in comparison.arms}
    firsts = [resolve_arm(_trial(base, arm, points[arm][0], seeds[0]).config) for arm in points]
    check_controls(dict(zip(points, firsts, strict=True)), comparison, config.arms)
    for first in firsts:
        check_inputs(workspace.for_config(first), models_of(first), reports=uses_reports(first))
    for first in firsts:  # checked last, because this reads the images
        validation = workspace.for_config(first).tiles(first.seed).of_split("validation")
        if first.training.monitor not in LABEL_FREE and not (validation.labels >= 0).any():
            raise _no_score(validation.where)
    trials = [_trial(base, arm, point, seed) for arm in points for point in points[arm] for seed in seeds]

    runs = RunCounter(len(trials))

    def run_trial(trial: Trial) -> float:
        kept = is_trained(run_folder(trial.config))
        try:
            train_run(trial.config, workspace)
        except DivergenceError as error:
            logger.warning(
                f"{format_point(trial.values)}: {error.what}; this trial has no score ({runs.finish(kept=kept)})"
            )
            raise
        score = _validation_score(trial)
        logger.info(f"{format_point(trial.values)}: validation {percent(score)} ({runs.finish(kept=kept)})")
        return score

    search = SharedSearch(config.output / "tuning" / "searches" / config.name)
    search.run(lambda study: trials, run_trial)
    reasons = search.reasons()

    def score_point(arm: str, point: GridPoint) -> ScoredPoint:
        by_seed = {seed: _trial(base, arm, point, seed) for seed in seeds}
        failed = {seed: reasons[trial.key] for seed, trial in by_seed.items() if trial.key in reasons}
        scores = [None if seed in failed else _validation_score(trial) for seed, trial in by_seed.items()]
        return ScoredPoint(point, scores, failed)

    monitors = {arm: first.training.monitor for arm, first in zip(points, firsts, strict=True)}
    scored = {arm: [score_point(arm, point) for point in points[arm]] for arm in points}
    return FinishedTrials(workspace, scored, monitors)


def best_point(scored: Sequence[ScoredPoint]) -> GridPoint:
    """Return the point with the best mean score; ties go to fewer steps, then to the lower learning rate.

    Points at which training diverged with any seed are ignored; at least one other point must exist.
    """
    complete = [point for point in scored if not point.reasons]
    return min(complete, key=lambda point: (-_mean_score(point), point.values[STEPS], point.values[RATE])).values


def _mean_score(point: ScoredPoint) -> float:
    return mean(score for score in point.scores if score is not None)


def _check_converged(scored: Mapping[str, Sequence[ScoredPoint]]) -> None:
    """Check that every arm has a grid point at which no training diverged."""
    for arm, points in scored.items():
        if all(point.reasons for point in points):
            raise DivergenceError(
                f"training of the arm {arm} diverged at every grid point with at least one seed; first reason: "
                f"{next(iter(points[0].reasons.values()))}",
                where="comparison.learning_rates",
                fix="add lower learning rates and run clipit tune again; finished trials are kept",
            )


def _trial(base: RunConfig, arm: str, point: GridPoint, seed: int) -> Trial:
    parts = [f"lr{point[RATE]:g}-steps{point[STEPS]}"]
    parts += [f"{key.rpartition('.')[2]}{value}" for key, value in point.items() if key not in (RATE, STEPS)]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join([base.name, *parts]))
    arms = {**base.arms, arm: _arm_keys(base, arm, point)}
    config = base.model_copy(update={"name": name, "arm": arm, "arms": arms, "seed": seed})
    return Trial({"arm": arm, **point, "seed": seed}, config)


def _arm_keys(config: RunConfig, arm: str, point: GridPoint) -> dict[str, Any]:
    """Return the arm's entry under `arms` with the values of a grid point."""
    return {**without(config.arms.get(arm, {"base": arm}), [*point]), **point}


def _validation_score(trial: Trial) -> float:
    """Return the monitored validation metric at the run's selected step."""
    folder = run_folder(trial.config)
    score = read_training(folder, "score")["score"]
    if score is None:
        raise _no_score(folder)
    return float(score)


def _no_score(where: object) -> DataError:
    return DataError(
        "the validation score is undefined, so no trial can be selected",
        where=where,
        fix="set tiles.labels so that the validation split has labels of at least two classes",
    )


def _write(
    config: RunConfig,
    comparison: ComparisonConfig,
    workspace: Workspace,
    scored: Mapping[str, Sequence[ScoredPoint]],
    path: Path,
) -> None:
    arms = {arm: _arm_keys(config, arm, best_point(points)) for arm, points in scored.items()}
    record = {
        "commit": git_commit(),
        "command": command_line(),
        "versions": versions(),
        "seeds": list(comparison.tuning_seeds),
        "monitor": config.training.monitor,
        "tiles": workspace.all_tiles.fingerprint,
        "vlm": workspace.vlm.fingerprint,
        "made_with": tuning_keys(config),
        "trials": {
            arm: [
                {"keys": dict(point.values), "scores": list(point.scores)}
                | ({"failed": dict(point.reasons)} if point.reasons else {})
                for point in points
            ]
            for arm, points in scored.items()
        },
        "arms": arms,
    }
    write_json(path, record)
    write_text(path.with_suffix(".yaml"), yaml.safe_dump({"arms": arms}, sort_keys=False))
    delete_leftovers(path.parent)


def _table(scored: Mapping[str, Sequence[ScoredPoint]], monitors: Mapping[str, str]) -> str:
    rows = []
    names = {arm: LABELS.get(monitor, monitor) for arm, monitor in monitors.items()}
    metric = "score" if len({*names.values()}) > 1 else next(iter(names.values()))
    for arm, points in scored.items():
        means = [100 * _mean_score(point) for point in points if not point.reasons]
        chosen = format_point(best_point(points))
        failed = len(points) - len(means)
        count = f"{len(points)} ({failed} diverged)" if failed else str(len(points))
        rows.append(
            [
                arm if metric != "score" else f"{arm} ({names[arm]})",
                count,
                f"{max(means):.1f}",
                f"{min(means):.1f}",
                chosen,
            ]
        )
    return markdown_table(["arm", "trials", f"best validation {metric} %", "worst %", "chosen"], rows)
