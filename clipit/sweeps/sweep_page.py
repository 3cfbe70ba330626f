"""Page of a sweep: one row per trial, means over seeds, selection on validation, and a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd

from clipit.errors import shortlist
from clipit.output_files.artifacts import write_json
from clipit.output_files.leftovers import delete_leftovers
from clipit.output_files.whole_files import write_frame, write_text
from clipit.reporting.html import Figure, PageSection, Rows, Table, Text, page
from clipit.reporting.page_note import compose_note
from clipit.reporting.plots import save_plot
from clipit.reporting.score_plots import plot_sweep
from clipit.reporting.tables import LABELS, UNDEFINED, markdown_line, markdown_table, mean_sd
from clipit.runs.folder import read_results, read_training, run_folder
from clipit.runs.search import Trial, TrialKey
from clipit.sweeps.trials import SweepPlan
from clipit.training.arms import resolve_arm
from clipit.training.terms.term_table import uses_vlm
from clipit.versions import git_commit, versions

_PERCENT = 100.0


def write_sweep_page(plan: SweepPlan, trials: Sequence[Trial], reasons: Mapping[TrialKey, str], folder: Path) -> None:
    """Write sweep.md, sweep.html, trials.csv, trials.parquet, sweep.png and sweep.json for the finished trials.

    Args:
        reasons: Reason why training diverged, by the key of the trial.
    """
    sweep = plan.sweep
    rows = [_result(trial, plan.comparison_metric) for trial in trials]
    table = pd.DataFrame(rows, dtype=object)
    metric = resolve_arm(trials[0].config).training.monitor
    tested = table.test_metric[0] if table.test.notna().any() else ""
    keys = [p.key for p in sweep.parameters if p.key != "seed"] or ["seed"]
    points = {
        key: [*zip([trial.values[key] for trial in trials], table.validation, table.test, strict=True)] for key in keys
    }
    save_plot(plot_sweep(points, metric=metric, test_metric=tested, title=sweep.name), folder / "sweep.png")
    names = pd.Series([format_values(trial.values, without="seed") for trial in trials])
    groups = {str(name): group for name, group in table.groupby(names, sort=False)}
    chosen = best_group({name: [*group.validation] for name, group in groups.items()})
    for key in keys:
        if pd.api.types.infer_dtype(table[key]) in ("mixed", "mixed-integer"):  # text mixed with numbers
            table[key] = table[key].map(str)
    write_frame(folder / "trials.parquet", table)
    write_frame(folder / "trials.csv", table)
    summary = _summarise(plan, groups, chosen, metric, tested)
    configs = [resolve_arm(trial.config) for trial in trials]
    backbones, vlms = [c.backbone.name for c in configs], [c.vlm.name for c in configs if uses_vlm(c)]
    note = compose_note(configs[0].note, backbones=backbones, vlms=vlms)
    write_text(folder / "sweep.md", _markdown(sweep.name, summary, note))
    picture = (folder / "sweep.png").read_bytes()
    write_text(folder / "sweep.html", _page(sweep.name, summary, note, picture, table))
    delete_leftovers(folder)
    failed = {format_values(trial.values): reasons[trial.key] for trial in trials if trial.key in reasons}
    facts = {"sweep": sweep.path.name, "options": dict(sweep.options), "metric": metric, "test_metric": tested}
    facts |= {"chosen": chosen, "rows": rows, "failed": failed, "commit": git_commit(), "versions": versions()}
    write_json(folder / "sweep.json", facts)


def _result(trial: Trial, comparison_metric: str) -> dict[str, Any]:
    """Build a row of the table; scores are fractions between 0 and 1, None if undefined."""
    folder, config = run_folder(trial.config), resolve_arm(trial.config)
    names = ("score", "chosen_step", "steps", "seconds")
    trained = (folder / "training.json").is_file()  # not if the training diverged
    training = read_training(folder, *names) if trained else dict.fromkeys(names)
    results = read_results(folder) if trained else {"splits": {}}
    monitor = config.training.monitor
    uses_labels = monitor not in ("agreement", "information")
    test_metric = monitor if uses_labels else comparison_metric
    return {
        "run": str(folder.relative_to(config.output)),
        "arm": config.arm or "custom",
        **{key: value for key, value in trial.values.items() if key not in ("arm", "seed")},
        "seed": config.seed,
        "validation": training["score"],
        "chosen_step": training["chosen_step"],
        "steps": training["steps"],
        "seconds": training["seconds"],
        "test_metric": test_metric,
        "test": results["splits"].get("test", {}).get("metrics", {}).get(test_metric, {}).get("value"),
    }


def best_group(scores: Mapping[str, Sequence[float | None]]) -> str | None:
    """Return the name with the best mean score (the first if tied); None if no name has a score for every seed."""
    means = {name: mean(s for s in group if s is not None) for name, group in scores.items() if None not in group}
    return max(means, key=lambda name: means[name]) if means else None


@dataclass(frozen=True)
class _Summary:
    """Table of a sweep and the sentences below it."""

    header: list[str]
    rows: list[list[object]]
    choice: str
    remarks: list[str]


def _summarise(
    plan: SweepPlan, groups: Mapping[str, pd.DataFrame], chosen: str | None, metric: str, tested: str
) -> _Summary:
    test_header = f"test {LABELS.get(tested, tested)} %" if tested else "test (not evaluated)"
    rows: list[list[object]] = [
        [
            f"{name} (chosen)" if name == chosen and len(groups) > 1 else name,
            len(group),
            _mean_percent(group.validation),
            _mean_percent(group.test) if tested else "",
            _whole_mean(group.chosen_step),
            _whole_mean(group.seconds),
        ]
        for name, group in groups.items()
    ]
    diverged = [name for name, group in groups.items() if group.steps.isna().any()]
    choice = (
        f"Chosen by mean validation score: {chosen}. This score is optimistic, because it is the best of "
        f"{len(groups)}; nothing was selected on test scores."
        if chosen and len(groups) > 1
        else f"Nothing was chosen: only {chosen} was trained."
        if chosen
        else "Nothing was chosen, because training diverged for at least one seed of every value."
        if len(diverged) == len(groups)
        else "Nothing was chosen, because validation scores are undefined; check that the validation split has labels."
    )
    several = any(len(group) > 1 for group in groups.values())
    remarks = [
        "Mean and standard deviation over seeds; differences smaller than the standard deviation do not justify a "
        "choice."
        if several
        else "One seed per row, so the variation between seeds is unknown.",
        *([f"Training diverged for at least one seed of: {shortlist(diverged)}."] if diverged else []),
        *(f"Note: {note}." for note in plan.sweep.notes),
    ]
    header = ["values", "seeds", f"validation {LABELS.get(metric, metric)} %", test_header, "chosen step", "seconds"]
    return _Summary(header, rows, choice, remarks)


def _markdown(name: str, summary: _Summary, note: str) -> str:
    paragraphs = [
        f"# {markdown_line(name)}",
        markdown_table(summary.header, summary.rows),
        markdown_line(summary.choice),
        *map(markdown_line, summary.remarks),
        *([f"> **Note.** {markdown_line(note)}"] if note else []),
    ]
    return "\n\n".join([*paragraphs, "![scores](sweep.png)"]) + "\n"


def _page(name: str, summary: _Summary, note: str, picture: bytes, table: pd.DataFrame) -> str:
    rows = Rows(list(table.columns), table.to_numpy().tolist(), "One row per trial", "trials.parquet")
    caption = "Score by swept value: one dot per trial, and a line through the means."
    sections = [
        PageSection(
            "Scores",
            [
                Table(summary.header, summary.rows, source="sweep.json: rows, from training.json and results.json"),
                *map(Text, summary.remarks),
                Figure(picture, caption, source="trials.parquet: columns validation and test"),
            ],
        ),
        PageSection("All trials", [rows]),
    ]
    return page(name, note, sections, verdict=summary.choice)


def read_sweep_head(folder: Path) -> str:
    """Return the head of sweep.md for the console: title, table and choice."""
    return "\n\n".join((folder / "sweep.md").read_text(encoding="utf-8").split("\n\n")[:3])


def _mean_percent(scores: "pd.Series[Any]") -> str:
    return mean_sd([None if score is None else _PERCENT * score for score in scores], 1)


def _whole_mean(values: "pd.Series[Any]") -> str:
    known = values.dropna()
    return f"{known.mean():,.0f}" if len(known) else UNDEFINED


def format_values(values: Mapping[str, Any], *, without: str = "") -> str:
    """Format swept values on one line, omitting the key `without`."""
    return ", ".join(f"{key} {value}" for key, value in values.items() if key != without) or "all seeds"
