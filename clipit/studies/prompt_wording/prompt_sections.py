"""Sections of the prompt study's page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import pandas as pd

from clipit.evaluation.prompt_modes import summarise_scores
from clipit.reporting.html import Figure, PageSection, Part, Rows, Table, Text, facts_table
from clipit.reporting.study_page import iter_groups, iter_rows, pivot_cells
from clipit.reporting.tables import LABELS, UNDEFINED, difference, interval, number

AXES = ("template", "organ", "magnification", "stain")
FILE = "prompts.parquet"
_NO_WORD = "(none)"
_REPORTED_ONLY = (
    "All scores are on the test split and were not used to select a prompt, template or word. To select a wording, use "
    "the validation split or a rule that uses no labels."
)


@dataclass(frozen=True, kw_only=True)
class PromptDifference:
    """Score with rich prompts minus score with simple prompts, for one model and metric.

    Attributes:
        value: Difference; None if undefined.
        low: Lower bound of the 95% interval.
        high: Upper bound of the 95% interval.
    """

    subject: str
    simple: str
    simple_hash: str
    rich: str
    rich_hash: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    reason: str
    tiles: int
    resamples: int
    seed: int


def prompt_sections(
    frame: pd.DataFrame,
    metric: str,
    undefined: str,
    differences: Sequence[PromptDifference],
    provenance: Mapping[str, object],
) -> list[PageSection]:
    """Build the sections on prompt modes, simple and rich prompts, the grid of wordings, truncation, and provenance.

    Args:
        undefined: Why the score is undefined for some rows; "" if it is defined for all.
        differences: Differences in this score, rich minus simple prompts.
    """
    column = f"{FILE}: column {metric}"
    scores = frame.assign(score=frame[metric], classifier=frame.subject + ": " + frame.prompts)
    intro = [
        Text(_REPORTED_ONLY),
        *([Text(f"{LABELS[metric]} is undefined for some rows: {undefined}.")] if undefined else []),
    ]
    spread_source = f"{column} by subject, prompts, kind, mode"
    spread = Figure(Path("prompts_spread.png"), "Scores by prompt mode", source=spread_source)
    sections = [PageSection("Prompt modes", [*intro, _mode_table(scores, metric), spread])]
    if differences:
        first = differences[0]
        method = Text(
            "Both as ensembles; paired percentile bootstrap over test tiles (clustered by group where known): "
            f"{first.resamples} resamples, seed {first.seed}. Variance between training runs is not included. All "
            "scores, unrounded: prompts.json, differences."
        )
        sections.append(PageSection("Simple versus rich prompts", [_difference_table(differences, metric), method]))
    cells = scores[scores.kind == "cell"]
    sensitivity: list[Part] = [
        _grid_summary(cells, column),
        _word_table(cells, column),
        Figure(Path("prompts_grid.png"), "Score of every cell in the grid", source=f"{column}, kind = cell"),
        _cell_rows(cells, column),
    ]
    return [
        *sections,
        PageSection("Sensitivity to the wording", sensitivity),
        PageSection("Truncated texts", [_truncation_table(frame)]),
        PageSection("Provenance", [facts_table(provenance, FILE)]),
    ]


def _mode_table(scores: pd.DataFrame, metric: str) -> Table:
    lines: list[list[object]] = []
    for (subject, prompts), group in iter_groups(scores, ["subject", "prompts"]):
        for row in iter_rows(group[group.kind == "mode"]):
            lines.append([subject, prompts, row.mode, row.texts, number(row.score), "", ""])
        draws = group.score[group.kind == "draw"].tolist()
        if draws:
            lines.append([subject, prompts, f"sampled ({len(draws)} draws): median", "", *_summary_cells(draws)[:3]])
    header = ("model", "prompt set", "mode", "texts", LABELS[metric], "quartiles", "range")
    return Table(header, lines, source=f"{FILE}: column {metric}, kind = mode or draw", left=3)


def _difference_table(differences: Sequence[PromptDifference], metric: str) -> Table:
    lines = []
    for row in differences:
        bounds = None if row.low is None or row.high is None else (row.low, row.high)
        lines.append([row.subject, row.simple, row.rich, difference(row.value, bounds), row.reason])
    header = ("model", "simple", "rich", "rich minus simple [95%]", "remark")
    source = f"prompts.json: differences, metric = {metric}: value, low, high, reason"
    return Table(header, lines, source=source, left=3)


def _grid_summary(cells: pd.DataFrame, column: str) -> Table:
    lines = [
        [subject, prompts, len(group), *_summary_cells(group.score.tolist())]
        for (subject, prompts), group in iter_groups(cells, ["subject", "prompts"])
    ]
    header = ("model", "prompt set", "cells", "median", "quartiles", "range", "width")
    return Table(header, lines, source=f"{column}, kind = cell", left=2)


def _summary_cells(scores: Sequence[float | None]) -> list[str]:
    """Format the median, quartiles, range, and width of the range."""
    summary = summarise_scores(scores)
    if summary is None:
        return [UNDEFINED, "", "", ""]
    quartiles, extremes = interval(summary.lower, summary.upper), interval(summary.lowest, summary.highest)
    return [number(summary.median), quartiles, extremes, number(summary.highest - summary.lowest)]


def _word_table(cells: pd.DataFrame, column: str) -> Table:
    columns = list(dict.fromkeys(cells.classifier))
    lines = []
    for axis in AXES:
        for (word,), group in iter_groups(cells, [axis]):
            scores = [group.score[group.classifier == name].tolist() for name in columns]
            lines.append([axis, word or _NO_WORD, *(number(None if None in s else mean(s)) for s in scores)])
    caption = "Mean score over all cells with the word"
    return Table(("axis", "word", *columns), lines, caption=caption, source=f"{column}, kind = cell", left=2)


def _cell_rows(cells: pd.DataFrame, column: str) -> Rows:
    words = cells.assign(**{axis: [word or _NO_WORD for word in cells[axis]] for axis in AXES})
    columns, lines = pivot_cells(words, AXES, "classifier", lambda row: number(row.score))
    return Rows((*AXES, *columns), lines, "Every cell", f"{column}, kind = cell")


def _truncation_table(frame: pd.DataFrame) -> Table:
    """Tabulate truncated texts of the ensemble and the grid per prompt set; the counts are the same for all models."""
    first = frame[frame.subject == frame.subject.iloc[0]]
    lines: list[list[object]] = []
    for (prompts,), group in iter_groups(first, ["prompts"]):
        ensemble = group[(group.kind == "mode") & (group["mode"] == "ensemble")]
        for name, rows in (("the prompt set", ensemble), ("the grid", group[group.kind == "cell"])):
            if len(rows):
                lines.append([prompts, name, rows.texts.sum(), rows.cut_texts.sum(), rows.cut_tokens.sum()])
    header = ("prompt set", "texts from", "texts", "texts truncated", "tokens truncated")
    return Table(header, lines, source=f"{FILE}: columns texts, cut_texts, cut_tokens", left=2)
