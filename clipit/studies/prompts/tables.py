"""The chapters of a prompt study."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from clipit.evaluation.prompt_modes import summarise
from clipit.reporting.html import Rows, Table, Text, facts_table
from clipit.reporting.tables import LABELS, UNDEFINED, difference, interval, number
from clipit.studies.report import Chapter, Plot

AXES = ("template", "organ", "magnification", "stain")
FILE = "prompts.parquet"
FACTS = "prompts.json"
_NO_WORD = "(none)"
_RULE = (
    "All scores are of the test split and only reported: no prompt, template or word was chosen by them. To choose a "
    "way of asking, use the validation split or a rule that reads no label."
)
_BOTH = (
    "Both as ensembles; paired percentile bootstrap over test tiles (whole groups where known): {resamples} resamples, "
    "seed {seed}. The chance of training is not in it. All scores, unrounded: prompts.json, differences."
)


def prompt_chapters(
    rows: Sequence[Mapping[str, Any]],
    metric: str,
    undefined: str,
    differences: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, object],
) -> list[Chapter]:
    """Modes, simple against rich, the grid of wordings, cut texts, and where all of it comes from.

    Args:
        rows: As in prompts.parquet.
        metric: The score that is shown.
        undefined: Why it is undefined for some rows; "" where it is not.
        differences: Per subject rich minus simple in this score, as in prompts.json.
        provenance: What the figures come from.
    """
    asked = list(dict.fromkeys((row["subject"], row["prompts"]) for row in rows))
    column = f"{FILE}: column {metric}"
    ways: list[Text] = [
        Text(_RULE),
        *([Text(f"{LABELS[metric]} is undefined for some rows: {undefined}.")] if undefined else []),
    ]
    spread_of = Plot("prompts_spread.png", "Scores over ways of asking", f"{column} by subject, prompts, kind, mode")
    chapters = [
        Chapter("Ways to ask", [*ways, Text(f"Score: {LABELS[metric]}."), _modes(rows, asked, metric), spread_of])
    ]
    if differences:
        told = Text(_BOTH.format(resamples=differences[0]["resamples"], seed=differences[0]["seed"]))
        chapters.append(Chapter("Simple against rich prompts", [_simple_rich(differences, metric), told]))
    grid = Plot("prompts_grid.png", "Score of every cell of the grid", f"{column}, kind = cell")
    words: list[Table | Rows | Plot] = [
        _grid_spread(rows, asked, metric),
        _axes(rows, asked, metric),
        grid,
        _cells(rows, asked, metric),
    ]
    return [
        *chapters,
        Chapter("How much the wording matters", words),
        Chapter("Texts that were cut", [_cut(rows)]),
        Chapter("Where this comes from", [facts_table(provenance, FILE)]),
    ]


def _modes(rows: Sequence[Mapping[str, Any]], asked: Sequence[tuple[str, str]], metric: str) -> Table:
    lines: list[list[object]] = []
    for subject, prompts in asked:
        own = [row for row in rows if (row["subject"], row["prompts"]) == (subject, prompts)]
        for row in own:
            if row["kind"] == "mode":
                lines.append([subject, prompts, row["mode"], row["texts"], number(row[metric]), "", ""])
        draws = [row[metric] for row in own if row["kind"] == "draw"]
        if draws:
            lines.append([subject, prompts, f"sampled ({len(draws)} draws): median", "", *_spread_cells(draws)[:3]])
    header = ("asked", "prompt set", "mode", "texts", "score", "quartiles", "range")
    return Table(header, lines, source=f"{FILE}: column {metric}, kind = mode or draw", left=3)


def _simple_rich(differences: Sequence[Mapping[str, Any]], metric: str) -> Table:
    lines = []
    for row in differences:
        bounds = None if row["low"] is None or row["high"] is None else (row["low"], row["high"])
        lines.append(
            [row["subject"], row["simple"], row["rich"], difference(row["value"], bounds), row["reason"] or ""]
        )
    header = ("asked", "simple", "rich", "rich minus simple [95 %]", "remark")
    return Table(header, lines, source=f"{FACTS}: differences, metric = {metric}: value, low, high, reason", left=3)


def _grid_spread(rows: Sequence[Mapping[str, Any]], asked: Sequence[tuple[str, str]], metric: str) -> Table:
    lines = []
    for subject, prompts in asked:
        scores = [row[metric] for row in _cells_of(rows, subject, prompts)]
        lines.append([subject, prompts, len(scores), *_spread_cells(scores)])
    header = ("asked", "prompt set", "cells", "median", "quartiles", "range", "width")
    return Table(header, lines, source=f"{FILE}: column {metric}, kind = cell", left=2)


def _spread_cells(scores: Sequence[float | None]) -> list[str]:
    """Median, quartiles, range and its width, as cells of a table."""
    found = summarise(scores)
    if found is None:
        return [UNDEFINED, "", "", ""]
    quartiles, extremes = interval(found.lower, found.upper), interval(found.lowest, found.highest)
    return [number(found.median), quartiles, extremes, number(found.highest - found.lowest)]


def _axes(rows: Sequence[Mapping[str, Any]], asked: Sequence[tuple[str, str]], metric: str) -> Table:
    cells = [row for row in rows if row["kind"] == "cell"]
    lines = []
    for axis in AXES:
        for word in dict.fromkeys(row[axis] for row in cells):
            line: list[object] = [axis, word or _NO_WORD]
            for subject, prompts in asked:
                scores = [row[metric] for row in _cells_of(cells, subject, prompts) if row[axis] == word]
                line.append(number(None if None in scores else mean(scores)))
            lines.append(line)
    caption = "Mean score over all cells that have the word"
    header = ("axis", "word", *(f"{s}: {p}" for s, p in asked))
    return Table(header, lines, caption=caption, source=f"{FILE}: column {metric}, kind = cell", left=2)


def _cells(rows: Sequence[Mapping[str, Any]], asked: Sequence[tuple[str, str]], metric: str) -> Rows:
    columns = [_cells_of(rows, subject, prompts) for subject, prompts in asked]
    lines = [
        [*(row[axis] or _NO_WORD for axis in AXES), *(number(column[i][metric]) for column in columns)]
        for i, row in enumerate(columns[0])
    ]
    header = (*AXES, *(f"{s}: {p}" for s, p in asked))
    return Rows(header, lines, "Every cell", f"{FILE}: column {metric}, kind = cell")


def _cut(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Per prompt set, over the texts of its ensemble and of its grid; subjects share them."""
    lines = []
    for prompts in dict.fromkeys(row["prompts"] for row in rows):
        own = [row for row in rows if row["prompts"] == prompts and row["subject"] == rows[0]["subject"]]
        for kind, part in (
            ("the set's own texts", [row for row in own if row["kind"] == "mode" and row["mode"] == "ensemble"]),
            ("the grid", [row for row in own if row["kind"] == "cell"]),
        ):
            if part:
                lines.append(
                    [prompts, kind, *(sum(row[key] for row in part) for key in ("texts", "cut_texts", "cut_tokens"))]
                )
    header = ("prompt set", "texts of", "texts", "of these cut", "tokens cut")
    return Table(header, lines, source=f"{FILE}: columns texts, cut_texts, cut_tokens", left=2)


def _cells_of(rows: Sequence[Mapping[str, Any]], subject: str, prompts: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if (row["kind"], row["subject"], row["prompts"]) == ("cell", subject, prompts)]
