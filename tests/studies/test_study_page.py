"""Pages of the studies: the same content in Markdown and HTML, and provenance in every row."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipit.reporting.html import Cards, Figure, PageSection, Rows, Table, Text
from clipit.reporting.study_page import (
    PROVENANCE,
    StudyRow,
    add_provenance,
    all_rows_section,
    collect_provenance,
    pivot_cells,
    prompt_columns,
    render_markdown,
    undefined_section,
    write_study,
)


@dataclass(frozen=True, kw_only=True)
class Row(StudyRow):
    value: float | None = None
    bins: list[int] | None = None


def table() -> pd.DataFrame:
    rows = [Row(subject="a", value=0.5, bins=[1]), Row(subject="b", seed=7)]
    models = {"a": {"model": "m", "seed": 1}, "b": {"model": "n", "seed": 2}}
    return add_provenance(rows, {"split": "test", "model": "default", **collect_provenance()}, models)


def test_values_of_a_row_override_those_of_its_model_and_of_the_study() -> None:
    frame = table()
    first, second = frame.itertuples()
    assert set(PROVENANCE) <= set(frame.columns) and list(frame.columns)[: len(PROVENANCE)] == list(PROVENANCE)
    assert (first.model, first.seed, second.model, second.seed) == ("m", 1, "n", 7)
    assert first.split == "test" and second.bins is None and second.value is None
    assert first.command and '"numpy"' in first.versions
    assert prompt_columns(None) == {"prompts": None, "prompts_hash": None}


def test_constant_columns_are_shown_once() -> None:
    section = all_rows_section(table(), "x.parquet")
    constant, rows = section.parts
    assert isinstance(constant, Table) and isinstance(rows, Rows)
    assert ("split", "test") in [tuple(row) for row in constant.rows] and "metric" not in str(constant.rows)
    assert list(rows.header) == ["subject", "value", "model", "seed"], "columns of lists are only in the file"
    assert rows.rows == [["a", 0.5, "m", 1], ["b", None, "n", 7]]
    assert all_rows_section(table().iloc[:0], "x.parquet").parts == [Text("There are no rows.")]


def test_pivoted_cells_keep_their_order_and_missing_cells_are_empty() -> None:
    frame = pd.DataFrame({"model": ["b", "b", "a"], "k": [5, 1, 1], "value": [0.5, None, 0.25]}, dtype=object)
    headings, lines = pivot_cells(frame, ["model"], "k", lambda row: str(row.value))
    assert headings == [5, 1] and lines == [["b", "0.5", "None"], ["a", "", "0.25"]]


def test_undefined_values_are_listed_once() -> None:
    assert undefined_section([], "x") == []
    (section,) = undefined_section([("b", "y"), ("a", "x"), ("b", "y")], "x")
    (table,) = section.parts
    assert isinstance(table, Table) and list(table.rows) == [("a", "x"), ("b", "y")]


def test_markdown_page_and_table_have_the_same_content(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "dot.png")
    scores = Table(("model", "score"), [("<b>", None), ("c | d", "0.5")], caption="Scores", source="x.parquet: value")
    parts = [
        Text("Words."),
        scores,
        Figure(Path("dot.png"), "A dot", source="x.parquet: dot"),
        Text("![](https://a.b/c.png)"),
    ]
    (leftover := tmp_path / ".x.md.999999999.tmp").write_text("leftover", encoding="utf-8")
    write_study(tmp_path, "x", "Title", "Beware.", [PageSection("First", parts)], table())
    assert not leftover.exists()
    markdown = (tmp_path / "x.md").read_text(encoding="utf-8")
    assert markdown.startswith("# Title\n\n> **Note.** Beware.\n\n## First\n\nWords.\n\n**Scores**\n\n| model")
    assert "| c \\| d |" in markdown and "| &lt;b> |   n/a |" in markdown and "![A dot](dot.png)" in markdown
    assert "![\\](https://a.b/c.png)" in markdown
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    for piece in (
        "&lt;b&gt;",
        "n/a",
        "from x.parquet: value",
        "from x.parquet: dot",
        "data:image/png;base64,",
        "All rows",
    ):
        assert piece in page
    assert "dot.png" not in page and "<b>" not in page
    assert pq.read_table(tmp_path / "x.parquet").num_rows == 2


def test_a_part_that_markdown_cannot_show_is_an_error() -> None:
    with pytest.raises(TypeError, match="Cards cannot be written as Markdown"):
        render_markdown("Title", "", [PageSection("Tiles", [Cards([])])])
