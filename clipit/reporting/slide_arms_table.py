"""Table of arms compared on slide labels."""

from clipit.errors import counted
from clipit.evaluation.slide_arms import SlideArmRow, SlideComparison
from clipit.evaluation.slide_sets import Level, PoolingKey, describe_patients, of_patients
from clipit.reporting.html import Table
from clipit.reporting.tables import LABELS, difference, interval, markdown_table, number

_LEFT = 2  # number of left-aligned columns


def slide_arms_table(comparison: SlideComparison, split: str, metric: str, level: Level = "slide") -> Table:
    """Build the table for one split, metric and level: one row per arm (and pooling, if none was chosen).

    Args:
        metric: Name of the metric, from `slide_metrics.SLIDE_METRICS`.
        level: Whether slides or patients are classified.
    """
    return Table(
        *_content(comparison, split, metric, level), caption=_caption(comparison, split, metric, level), left=_LEFT
    )


def slide_arms_markdown(comparison: SlideComparison, split: str, metric: str, level: Level = "slide") -> str:
    """Format `slide_arms_table` as Markdown."""
    table = markdown_table(*_content(comparison, split, metric, level), left=_LEFT)
    return f"{_caption(comparison, split, metric, level)}\n\n{table}"


def _caption(comparison: SlideComparison, split: str, metric: str, level: Level) -> str:
    rows = comparison.rows(split, metric, level)
    if not rows:
        return f"No {split} {level}s to compare"
    patients, unknown = rows[0].patients, comparison.unknown.get(split, 0)
    if level == "slide":
        units = f"{counted(rows[0].labelled, level)} {of_patients(patients, unknown)}"
    else:
        units = describe_patients(patients, unknown)
    chosen = comparison.choices[comparison.reference].key is not None
    how = (
        "the pooling of each arm was chosen on validation slides"
        if chosen
        else "no pooling method was chosen: all are shown"
    )
    return (
        f"{LABELS[metric]} per {level}, {split}: {units}; mean over seeds, and difference from "
        f"`{comparison.reference}` with its 95% intervals over patients (paired bootstrap) and over seeds "
        f"(Student's t); {how}"
    )


def _content(
    comparison: SlideComparison, split: str, metric: str, level: Level
) -> tuple[tuple[str, ...], list[list[object]]]:
    header = ("arm", "pooling", "seeds", LABELS[metric], "difference [patients]", "[seeds]", "p, Holm")
    return header, [_row(row) for row in comparison.rows(split, metric, level)]


def _row(row: SlideArmRow) -> list[object]:
    pooling = PoolingKey(str(row.pooling), bool(row.smoothed)).title
    spread = "" if row.sd is None else f" ± {number(row.sd)}"
    cells = [row.arm, pooling, row.seeds, number(row.mean) + spread]
    if row.p_reason is None:  # the reference itself
        return [*cells, "", "", ""]
    bounds = None if row.low is None or row.high is None else (row.low, row.high)
    gain = difference(row.difference, bounds) + (f" (no interval: {row.reason})" if bounds is None else "")
    p = f"none: {row.p_reason}" if row.p_holm is None else number(row.p_holm)
    return [*cells, gain, interval(row.seeds_low, row.seeds_high, signed=True), p]
