"""The search that a comparison's learning rates and steps come from: the same grid for every arm."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from clipit.artifacts import git_commit, write_json
from clipit.config import Config
from clipit.distributed import processes
from clipit.errors import DataError, explain
from clipit.experiments.finished import read_training
from clipit.experiments.materials import Materials
from clipit.experiments.run import train_run
from clipit.reporting.tables import markdown_table

Trial = tuple[float, int]


def tune(config: Config, say: Callable[[str], None] = print) -> Path:
    """Try every (learning rate, steps) of the grid with every arm and tuning seed; choose on validation.

    The trials are ordinary runs in `<output>/tuning`, evaluated on the validation part only: no test tile is
    read. Those finished are skipped.

    Returns:
        tuning.json: all scores, the choice per arm, and the `arms` block for the configuration.
    """
    c = config.comparison
    base = config.model_copy(
        update={
            "output": config.output / "tuning",
            # The grid sets these; a value from the command line would make all trials the same.
            "overrides": tuple(k for k in config.overrides if k not in ("training.learning_rate", "training.steps")),
            "evaluation": config.evaluation.model_copy(update={"splits": ("validation",), "bootstrap": 0}),
        }
    )
    materials = Materials(base, say)
    scores: dict[str, dict[Trial, list[float]]] = {}
    for arm in c.arms:
        for rate in c.learning_rates:
            for steps in c.steps:
                own = dict(config.arms.get(arm, {"base": arm})) | {
                    "training.learning_rate": rate,
                    "training.steps": steps,
                }
                trial = base.model_copy(
                    update={
                        "name": f"{config.name}-lr{rate:g}-steps{steps}",
                        "arm": arm,
                        "arms": {**config.arms, arm: own},
                    }
                )
                found = [
                    _validation_score(train_run(trial.model_copy(update={"seed": s}), materials, say))
                    for s in c.tuning_seeds
                ]
                scores.setdefault(arm, {})[rate, steps] = found
                materials.say(f"{arm}, learning rate {rate:g}, {steps} steps: {mean(found):.4f}")
    path = config.output / "tuning" / f"{config.name}.json"
    if processes().main:
        _write(config, scores, path)
        materials.say(_text(scores))
    return path


def best_trial(scores: dict[Trial, list[float]]) -> Trial:
    """The trial with the best mean score; of equal ones fewer steps, then the lower learning rate."""
    return min(scores, key=lambda trial: (-mean(scores[trial]), trial[1], trial[0]))


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


def _write(config: Config, scores: dict[str, dict[Trial, list[float]]], path: Path) -> None:
    chosen = {arm: best_trial(trials) for arm, trials in scores.items()}
    block: dict[str, Any] = {
        arm: dict(config.arms.get(arm, {"base": arm})) | {"training.learning_rate": rate, "training.steps": steps}
        for arm, (rate, steps) in chosen.items()
    }
    listed = {
        arm: [{"learning_rate": rate, "steps": steps, "scores": found} for (rate, steps), found in trials.items()]
        for arm, trials in scores.items()
    }
    write_json(path, {"commit": git_commit(), "trials": listed, "arms": block})
    path.with_suffix(".yaml").write_text(yaml.safe_dump({"arms": block}, sort_keys=False), encoding="utf-8")


def _text(scores: dict[str, dict[Trial, list[float]]]) -> str:
    trials = list(next(iter(scores.values())))
    header = ["arm", *(f"lr {rate:g}, {steps} steps" for rate, steps in trials), "chosen"]
    rows = []
    for arm, found in scores.items():
        rate, steps = best_trial(found)
        rows.append([arm, *(f"{100 * mean(found[trial]):.1f}" for trial in trials), f"lr {rate:g}, {steps} steps"])
    return markdown_table(header, rows)
