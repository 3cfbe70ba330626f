"""Results of a sweep: one row per trial, means over seeds, a choice on validation, and a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd

from clipit.artifacts import git_commit, versions, whole_file, write_json
from clipit.reporting.plots import save_plot
from clipit.reporting.score_plots import plot_sweep
from clipit.reporting.tables import markdown_table, mean_sd
from clipit.runs.folder import read_results, read_training, run_folder
from clipit.runs.search import Trial
from clipit.sweeps.file import Sweep
from clipit.training.arms import resolve_arm

_PERCENT = 100.0


@dataclass(frozen=True)
class TrialResult:
    """Outcome of a finished trial; scores lie in 0..1 and are None where they are not defined."""

    run: str
    arm: str
    values: Mapping[str, Any]
    seed: int
    validation: float | None
    chosen_step: int
    steps: int
    seconds: float
    test_metric: str
    test: float | None

    def as_row(self) -> dict[str, Any]:
        """The result by column; every swept key is a column."""
        row: dict[str, Any] = {}
        for name, value in vars(self).items():
            row |= {k: v for k, v in value.items() if k not in ("arm", "seed")} if name == "values" else {name: value}
        return row


def read_trial_result(trial: Trial) -> TrialResult:
    """Read the result of a finished trial from its run's folder."""
    folder, config = run_folder(trial.config), resolve_arm(trial.config)
    training, test_metric = read_training(folder), _test_metric(trial)
    test_metrics = read_results(folder)["splits"].get("test", {}).get("metrics", {})
    return TrialResult(
        run=str(folder.relative_to(config.output)),
        arm=config.arm or "custom",
        values=trial.values,
        seed=config.seed,
        validation=training["score"],
        chosen_step=training["chosen_step"],
        steps=training["steps"],
        seconds=training["seconds"],
        test_metric=test_metric,
        test=test_metrics.get(test_metric, {}).get("value"),
    )


def _test_metric(trial: Trial) -> str:
    """The metric of the test score: the monitored one, unless that needs no labels."""
    monitor = resolve_arm(trial.config).training.monitor
    return trial.comparison_metric if monitor in ("agreement", "information") else monitor


def write_tables(sweep: Sweep, trials: Sequence[Trial], folder: Path) -> None:
    """Write sweep.md, trials.csv, trials.parquet, sweep.png and sweep.json about finished trials."""
    results = [read_trial_result(trial) for trial in trials]
    groups: dict[str, list[TrialResult]] = {}
    for result in results:
        groups.setdefault(format_values(result.values, without="seed"), []).append(result)
    chosen = best_group({name: [result.validation for result in group] for name, group in groups.items()})
    metric = resolve_arm(trials[0].config).training.monitor
    tested = results[0].test_metric if any(result.test is not None for result in results) else ""
    keys = [p.key for p in sweep.parameters if p.key != "seed"] or ["seed"]
    points = {key: [(result.values[key], result.validation, result.test) for result in results] for key in keys}
    save_plot(plot_sweep(points, metric=metric, test_metric=tested, title=sweep.name), folder / "sweep.png")
    rows = [result.as_row() for result in results]
    table = pd.DataFrame(rows, dtype=object)
    for key in keys:
        if pd.api.types.infer_dtype(table[key]) in ("mixed", "mixed-integer"):  # words beside numbers
            table[key] = table[key].map(str)
    with whole_file(folder / "trials.parquet") as temporary:
        table.to_parquet(temporary, index=False)
    with whole_file(folder / "trials.csv") as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    with whole_file(folder / "sweep.md") as temporary:
        temporary.write_text(_markdown(sweep, groups, chosen, metric, tested), encoding="utf-8")
    write_json(
        folder / "sweep.json",
        {
            "sweep": sweep.path.name,
            "options": dict(sweep.options),
            "metric": metric,
            "test_metric": tested,
            "chosen": chosen,
            "rows": rows,
            "commit": git_commit(),
            "versions": versions(),
        },
    )


def best_group(scores: Mapping[str, Sequence[float | None]]) -> str | None:
    """The name with the best mean score, the first of equal ones; None when no name has a score for every seed."""
    means = {name: mean(s for s in group if s is not None) for name, group in scores.items() if None not in group}
    return max(means, key=lambda name: means[name]) if means else None


def _markdown(
    sweep: Sweep, groups: Mapping[str, Sequence[TrialResult]], chosen: str | None, metric: str, tested: str
) -> str:
    test_header = f"test {tested} %" if tested else "test (not evaluated)"
    rows = [
        [
            f"{name} (chosen)" if name == chosen else name,
            len(group),
            _mean_percent([result.validation for result in group]),
            _mean_percent([result.test for result in group]) if tested else "",
            f"{mean(result.chosen_step for result in group):,.0f}",
            f"{mean(result.seconds for result in group):,.0f}",
        ]
        for name, group in groups.items()
    ]
    paragraphs = [
        f"# {sweep.name}",
        markdown_table(["values", "seeds", f"validation {metric} %", test_header, "chosen step", "seconds"], rows),
        f"Chosen by the mean validation score: {chosen}. Its own validation score is optimistic, being the best of "
        f"{len(groups)}; test scores chose nothing."
        if chosen
        else "Nothing is chosen: no validation score is defined (are there labels in the validation part?).",
        "Mean and standard deviation over seeds; smaller differences are no grounds for a choice."
        if any(len(group) > 1 for group in groups.values())
        else "One seed per row: the variation between seeds is not known.",
        *(f"Note: {note}." for note in sweep.notes),
    ]
    return "\n\n".join([*paragraphs, "![scores](sweep.png)"]) + "\n"


def _mean_percent(values: Sequence[float | None]) -> str:
    return mean_sd([None if value is None else _PERCENT * value for value in values], 1)


def format_score(value: float | None) -> str:
    """A score in percent."""
    return "not defined" if value is None else f"{_PERCENT * value:.1f} %"


def format_values(values: Mapping[str, Any], *, without: str = "") -> str:
    """Swept values in one line, except those of the key `without`."""
    return ", ".join(f"{key} {value}" for key, value in values.items() if key != without) or "all seeds"
