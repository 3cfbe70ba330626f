"""The page of a prompt study, as Markdown."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np
from jaxtyping import Int64

from clipit.evaluation.metrics import why_undefined
from clipit.evaluation.prompt_modes import spread
from clipit.reporting.tables import LABELS, UNDEFINED, difference, interval, key_value_table, markdown_table, number

AXES = ("template", "organ", "magnification", "stain")
_NO_WORD = "(none)"
_RULE = (
    "All scores are of the test split and only reported: no prompt, template or word was chosen by them. To choose a "
    "way of asking, use the validation split or a rule that reads no label."
)


def study_text(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    metric: str,
    labels: Int64[np.ndarray, " n"],
    classes: tuple[str, ...],
    differences: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, object],
    *,
    note: str = "",
) -> str:
    """The whole page.

    Args:
        title: Name of the study.
        rows: As in prompts.parquet.
        metric: The score that is shown.
        labels: Of the test tiles, to say why a score is undefined.
        classes: Class names.
        differences: Per subject rich minus simple: subject, simple, rich, value, low, high, reason.
        provenance: What the figures come from.
        note: Printed under the title.
    """
    asked = list(dict.fromkeys((row["subject"], row["prompts"]) for row in rows))
    parts = [f"# Prompt study: {title}", *([note] if note else []), _RULE]
    if any(row[metric] is None for row in rows):
        parts.append(f"{LABELS[metric]} is undefined for some rows: {why_undefined(metric, labels, classes)}.")
    parts += ["## Ways to ask", f"Score: {LABELS[metric]}.", _modes(rows, asked, metric), "![](prompts_spread.png)"]
    if differences:
        parts += ["## Simple against rich prompts", _simple_rich(differences)]
    parts += ["## How much the wording matters", _grid_spread(rows, asked, metric)]
    parts += ["Mean score over all cells that have the word:", _axes(rows, asked, metric)]
    parts += ["Every cell:", _cells(rows, asked, metric), "![](prompts_grid.png)"]
    parts += ["## Texts that were cut", _cut(rows), "## Where this comes from", key_value_table(provenance)]
    return "\n\n".join(parts) + "\n"


def _modes(rows: Sequence[Mapping[str, Any]], asked: Sequence[tuple[str, str]], metric: str) -> str:
    lines: list[list[object]] = []
    for subject, prompts in asked:
        own = [row for row in rows if (row["subject"], row["prompts"]) == (subject, prompts)]
        for row in own:
            if row["kind"] == "mode":
                lines.append([subject, prompts, row["mode"], row["texts"], number(row[metric]), "", ""])
        draws = [row[metric] for row in own if row["kind"] == "draw"]
        if draws:
            lines.append([subject, prompts, f"sampled ({len(draws)} draws): median", "", *_spread_cells(draws)[:3]])
    return markdown_table(("asked", "prompt set", "mode", "texts", "score", "quartiles", "range"), lines, left=3)


def _simple_rich(differences: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in differences:
        bounds = None if row["low"] is None or row["high"] is None else (row["low"], row["high"])
        lines.append(
            [row["subject"], row["simple"], row["rich"], difference(row["value"], bounds), row["reason"] or ""]
        )
    header = ("asked", "simple", "rich", "rich minus simple [95 %]", "remark")
    return markdown_table(header, lines, left=3) + "\n\nBoth as ensembles; the interval is over tiles (or groups) only."


def _grid_spread(rows: Sequence[Mapping[str, Any]], asked: Sequence[tuple[str, str]], metric: str) -> str:
    lines = []
    for subject, prompts in asked:
        scores = [row[metric] for row in _cells_of(rows, subject, prompts)]
        lines.append([subject, prompts, len(scores), *_spread_cells(scores)])
    return markdown_table(("asked", "prompt set", "cells", "median", "quartiles", "range", "width"), lines, left=2)


def _spread_cells(scores: Sequence[float | None]) -> list[str]:
    """Median, quartiles, range and its width, as cells of a table."""
    found = spread(scores)
    if found is None:
        return [UNDEFINED, "", "", ""]
    quartiles, extremes = interval(found.lower, found.upper), interval(found.lowest, found.highest)
    return [number(found.median), quartiles, extremes, number(found.highest - found.lowest)]


def _axes(rows: Sequence[Mapping[str, Any]], asked: Sequence[tuple[str, str]], metric: str) -> str:
    cells = [row for row in rows if row["kind"] == "cell"]
    lines = []
    for axis in AXES:
        for word in dict.fromkeys(row[axis] for row in cells):
            line: list[object] = [axis, word or _NO_WORD]
            for subject, prompts in asked:
                scores = [row[metric] for row in _cells_of(cells, subject, prompts) if row[axis] == word]
                line.append(number(None if None in scores else mean(scores)))
            lines.append(line)
    return markdown_table(("axis", "word", *(f"{s}: {p}" for s, p in asked)), lines, left=2)


def _cells(rows: Sequence[Mapping[str, Any]], asked: Sequence[tuple[str, str]], metric: str) -> str:
    columns = [_cells_of(rows, subject, prompts) for subject, prompts in asked]
    lines = [
        [*(row[axis] or _NO_WORD for axis in AXES), *(number(column[i][metric]) for column in columns)]
        for i, row in enumerate(columns[0])
    ]
    return markdown_table((*AXES, *(f"{s}: {p}" for s, p in asked)), lines, left=4)


def _cut(rows: Sequence[Mapping[str, Any]]) -> str:
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
    return markdown_table(("prompt set", "texts of", "texts", "of these cut", "tokens cut"), lines, left=2)


def _cells_of(rows: Sequence[Mapping[str, Any]], subject: str, prompts: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if (row["kind"], row["subject"], row["prompts"]) == ("cell", subject, prompts)]
