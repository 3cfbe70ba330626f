"""Pages of the studies: one description for Markdown and HTML, and what stands beside every row."""

from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from clipit.reporting.html import Rows, Table, Text
from clipit.studies.report import (
    MAY_BE_EMPTY,
    RECORD,
    Chapter,
    Plot,
    asked_with,
    made_by,
    recorded,
    rows_chapter,
    undefined_chapter,
    write_study,
)

ROWS = [{"subject": "a", "value": 0.5, "bins": [1]}, {"subject": "b", "value": None, "seed": 7}]


def whole() -> list[dict[str, object]]:
    facts = {"a": {"model": "m", "seed": 1}, "b": {"model": "n", "seed": 2}}
    return recorded(ROWS, {"split": "test", "model": "nobody", **made_by()}, facts)


def test_rows_say_more_than_their_subject_and_that_more_than_the_study() -> None:
    first, second = whole()
    assert list(first) == list(second) and set(RECORD) <= set(first)
    assert (first["model"], first["seed"], second["model"], second["seed"]) == ("m", 1, "n", 7)
    assert first["split"] == "test" and second["bins"] is None
    assert first["command"] and '"numpy"' in str(first["versions"])
    assert set(MAY_BE_EMPTY) < set(RECORD)
    assert asked_with(None) == {"prompts": None, "prompts_hash": None}


def test_what_is_the_same_in_every_row_is_shown_once() -> None:
    chapter = rows_chapter(whole(), "x.parquet")
    same, rows = chapter.parts
    assert isinstance(same, Table) and isinstance(rows, Rows)
    assert ("split", "test") in [tuple(row) for row in same.rows] and "metric" not in str(same.rows)
    assert list(rows.header) == ["subject", "value", "model", "seed"], "columns of lists stay in the file"
    assert rows.rows == [["a", 0.5, "m", 1], ["b", None, "n", 7]]
    assert rows_chapter([], "x.parquet").parts == [Text("There is no row.")]


def test_undefined_figures_are_listed_once_or_not_at_all() -> None:
    assert undefined_chapter([], "x") == []
    (chapter,) = undefined_chapter([("b", "y"), ("a", "x"), ("b", "y")], "x")
    (table,) = chapter.parts
    assert isinstance(table, Table) and list(table.rows) == [("a", "x"), ("b", "y")]


def test_markdown_page_and_table_hold_the_same(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "dot.png")
    table = Table(("model", "score"), [("<b>", None), ("c | d", "0.5")], caption="Scores", source="x.parquet: value")
    parts = [Text("Words."), table, Plot("dot.png", "A dot", "x.parquet: dot")]
    write_study(tmp_path, "x", "Title", "Beware.", [Chapter("First", parts)], whole())
    markdown = (tmp_path / "x.md").read_text(encoding="utf-8")
    assert markdown.startswith("# Title\n\n> **Note.** Beware.\n\n## First\n\nWords.\n\n**Scores**\n\n| model")
    assert "| c \\| d |" in markdown and "| <b>    |   n/a |" in markdown and "![A dot](dot.png)" in markdown
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
