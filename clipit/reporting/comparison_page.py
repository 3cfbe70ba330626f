"""The page of a comparison (`comparison.html`): sections as plain data, and the chart of arms over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from clipit.reporting.charts import dot_chart
from clipit.reporting.html import Figure, Folded, Part, Rows, Section, facts_table, page
from clipit.reporting.svg import Number


def comparison_page(title: str, note: str, sections: Sequence[Section]) -> str:
    """The page.

    Args:
        title: Heading.
        note: A warning that belongs beside everything; empty for none.
        sections: Of `Text`, `Table`, `Figure`, `Rows`, ... (`clipit.reporting.html`), in order.
    """
    return page(title, note, sections)


def seed_figure(
    scores: Mapping[str, Mapping[str, Number | None]], *, what: str, baseline: str | None = None, source: str = ""
) -> Figure:
    """Seed-by-seed dots per arm.

    Args:
        scores: Arm -> seed (as a text) -> score; None where it is not defined.
        what: The score with its unit and part, such as `test: accuracy %`.
        baseline: Arm whose mean is drawn through all as a dashed line.
        source: File and column that the scores come from.
    """
    line = f" The dashed line is the mean of {baseline}." if baseline in scores else ""
    caption = f"{what}: one dot per seed, the stroke is their mean.{line}"
    chart = dot_chart(scores, label=f"{what}, per arm and seed", x_label=what, baseline=baseline)
    return Figure(chart, caption, source=source)


def raw_parts(rows: Sequence[Mapping[str, Any]], caption: str, source: str = "") -> list[Part]:
    """`raw_rows`, less the columns that hold the same in every row: these stand above, once."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    shared = {key: rows[0].get(key) for key in keys if len({str(row.get(key)) for row in rows}) == 1}
    if len(rows) < 2 or not shared:
        return [raw_rows(rows, caption, source)]
    told = {key: value for key, value in shared.items() if value is not None}
    own = [{key: value for key, value in row.items() if key not in shared} for row in rows]
    facts = replace(facts_table(told, source), caption=f"The same in all {len(rows)} rows")
    return [Folded(f"What is the same in all rows ({len(told)} columns)", [facts]), raw_rows(own, caption, source)]


def raw_rows(rows: Sequence[Mapping[str, Any]], caption: str, source: str = "") -> Rows:
    """Dictionaries as a filterable table: one column per key, in the order of appearance; absent keys are n/a."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    return Rows(header, [[row.get(key) for key in header] for row in rows], caption, source)
