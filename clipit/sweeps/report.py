"""What a sweep found: a row per trial, means over seeds, a choice on validation, and a plot."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipit.artifacts import git_commit, versions, whole_file, write_json
from clipit.config.run import RunConfig
from clipit.reporting.sweep_plot import sweep_plot
from clipit.reporting.tables import markdown_table, mean_sd
from clipit.runs.folder import read_results, read_training, run_folder
from clipit.sweeps.file import Sweep
from clipit.sweeps.trials import Trial
from clipit.training.arms import resolve_arm

_PERCENT = 100.0


def trial_row(trial: Trial) -> dict[str, Any]:
    """What a finished trial gave; scores in 0..1, None where they are not defined."""
    folder, config = run_folder(trial.config), resolve_arm(trial.config)
    training, results = read_training(folder), read_results(folder)
    of_test = results["splits"].get("test", {}).get("metrics", {})
    tested = _tested(config)
    return {
        "run": str(folder.relative_to(config.output)),
        "arm": config.arm or "custom",
        **{key: value for key, value in trial.values.items() if key not in ("arm", "seed")},
        "seed": config.seed,
        "validation": training["score"],
        "chosen_step": training["chosen_step"],
        "steps": training["steps"],
        "seconds": training["seconds"],
        "test_metric": tested,
        "test": of_test.get(tested, {}).get("value"),
    }


def _tested(config: RunConfig) -> str:
    """The test score beside the monitored one: the same where it can be had with labels."""
    monitor = config.training.monitor
    return config.comparison.metric if monitor in ("agreement", "information") else monitor


def write_tables(sweep: Sweep, trials: Sequence[Trial], folder: Path) -> None:
    """Write sweep.md, trials.csv, trials.parquet, sweep.png and sweep.json about finished trials."""
    rows = [trial_row(trial) for trial in trials]
    groups: dict[str, list[dict[str, Any]]] = {}
    for trial, row in zip(trials, rows, strict=True):
        groups.setdefault(label(trial.values, "seed"), []).append(row)
    config = resolve_arm(trials[0].config)
    chosen = best_group({name: [row["validation"] for row in found] for name, found in groups.items()})
    keys = [p.key for p in sweep.parameters if p.key != "seed"] or ["seed"]
    metric, tested = config.training.monitor, _tested(config) if any(row["test"] is not None for row in rows) else ""
    points = {
        key: [(trial.values[key], row["validation"], row["test"]) for trial, row in zip(trials, rows, strict=True)]
        for key in keys
    }
    sweep_plot(points, folder / "sweep.png", metric=metric, tested=tested, title=sweep.name)
    columns = {key: _column([row[key] for row in rows]) for key in rows[0]}
    with whole_file(folder / "trials.parquet") as temporary:
        pq.write_table(pa.table(columns), temporary)
    with whole_file(folder / "trials.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    with whole_file(folder / "sweep.md") as temporary:
        temporary.write_text(_markdown(sweep, groups, chosen, metric, tested), encoding="utf-8")
    facts = {"sweep": sweep.path.name, "options": dict(sweep.options), "metric": metric, "test_metric": tested}
    write_json(
        folder / "sweep.json", facts | {"chosen": chosen, "rows": rows, "commit": git_commit(), "versions": versions()}
    )


def _column(values: Sequence[Any]) -> list[Any]:
    """Values of one kind; words where they are of several."""
    kinds = {type(value) for value in values if value is not None}
    return list(values) if len(kinds) <= 1 or kinds == {int, float} else [str(value) for value in values]


def best_group(scores: Mapping[str, Sequence[float | None]]) -> str | None:
    """The name with the best mean score, the first of equal ones; None when no name has a score for every seed."""
    defined = {name: mean(s for s in found if s is not None) for name, found in scores.items() if None not in found}
    return max(defined, key=lambda name: defined[name]) if defined else None


def _markdown(
    sweep: Sweep, groups: Mapping[str, Sequence[Mapping[str, Any]]], chosen: str | None, metric: str, tested: str
) -> str:
    test_head = f"test {tested} %" if tested else "test (not evaluated)"
    rows = [
        [
            f"{name} (chosen)" if name == chosen else name,
            len(found),
            _spread([row["validation"] for row in found]),
            _spread([row["test"] for row in found]) if tested else "",
            f"{mean(row['chosen_step'] for row in found):,.0f}",
            f"{mean(row['seconds'] for row in found):,.0f}",
        ]
        for name, found in groups.items()
    ]
    parts = [
        f"# {sweep.name}",
        markdown_table(["values", "seeds", f"validation {metric} %", test_head, "chosen step", "seconds"], rows),
        f"Chosen by the mean validation score: {chosen}. Its own validation score is optimistic, being the best of "
        f"{len(groups)}; test scores chose nothing."
        if chosen
        else "Nothing is chosen: no validation score is defined (are there labels in the validation part?).",
        "Mean and standard deviation over seeds; differences smaller than that are no ground for a choice."
        if any(len(found) > 1 for found in groups.values())
        else "One seed per row: how far scores vary by chance is not known.",
        *(f"Note: {note}." for note in sweep.notes),
    ]
    return "\n\n".join([*parts, "![scores](sweep.png)"]) + "\n"


def _spread(values: Sequence[float | None]) -> str:
    return mean_sd([None if value is None else _PERCENT * value for value in values], 1)


def shown(value: float | None) -> str:
    """A score in %."""
    return "not defined" if value is None else f"{_PERCENT * value:.1f} %"


def label(values: Mapping[str, Any], *without: str) -> str:
    """Swept values as words, less some keys."""
    return ", ".join(f"{key} {value}" for key, value in values.items() if key not in without) or "all seeds"
