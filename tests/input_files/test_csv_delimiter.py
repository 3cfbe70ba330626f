"""Test advice for tables with a different delimiter, row names, or lines above the header."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from clipit.config.run import ReportsConfig, TilesConfig
from clipit.errors import DataError
from clipit.reports.readers import read_reports
from clipit.tiles.load_tiles import read_tiles

ABOVE = "fix: if line {} ({}, {}) is the header, delete the lines above it"
TEXTS = ("Tubular adenoma.", "No carcinoma, no adenoma.", "Nevus.")


def table(mark: str, header: Sequence[str], *, above: str = "", rows: Sequence[Sequence[str]] = ()) -> str:
    rows = rows or [(f"S{n}", text if mark != "," else f'"{text}"') for n, text in enumerate(TEXTS)]
    return above + "".join(f"{mark.join(row)}\n" for row in (header, *rows))


def tile_rows(count: int = 4) -> list[tuple[str, str]]:
    return [(f"q{n}.png", "ab"[n % 2]) for n in range(count)]


def error_for_reports(path: Path, content: str, **keys: str) -> str:
    path.write_text(content)
    with pytest.raises(DataError) as error:
        read_reports(ReportsConfig(path=str(path), **keys))
    return str(error.value)


def error_for_tiles(path: Path, content: str) -> str:
    path.write_text(content)
    with pytest.raises(DataError) as error:
        read_tiles(TilesConfig(source="table", path=str(path)))
    return str(error.value)


@pytest.mark.parametrize(
    ("mark", "word"),
    [("|", r"'|'"), ("  ", "spaces"), (" ", "spaces"), ("\t", "tabs")],
    ids=["bar", "align", "space", "tab"],
)
def test_other_delimiters_are_named(tmp_path: Path, mark: str, word: str) -> None:
    for message in (
        error_for_reports(tmp_path / "r.csv", table(mark, ("id", "text"), rows=[("1", "Adenoma."), ("2", "Nevus.")])),
        error_for_reports(tmp_path / "r.csv", table(mark, ("id", "text"))),
        error_for_tiles(tmp_path / "t.csv", table(mark, ("path", "label"), rows=tile_rows())),
    ):
        assert f"contains {word}: save the table as comma-separated .csv, or as .tsv" in message, message
        assert "text_column" not in message and "tiles.columns" not in message


def test_a_header_with_spaces_is_one_column(tmp_path: Path) -> None:
    content = "Report text\nTubular adenoma of colon.\nNevus.\n"
    assert "set reports.text_column to one of these" in error_for_reports(tmp_path / "r.csv", content)
    (tmp_path / "r.csv").write_text(content)
    assert len(read_reports(ReportsConfig(path=str(tmp_path / "r.csv"), text_column="Report text")).reports) == 2


def test_other_delimiters_are_named_for_quoted_columns(tmp_path: Path) -> None:
    for mark, word in (("\t", "tabs"), (" ", "spaces"), ("|", "'|'")):
        quoted = table(mark, ('"id"', '"text"'), rows=[('"1"', '"Adenoma."'), ('"2"', '"Nevus."')])
        assert f"separated by {word}: save" in error_for_reports(tmp_path / "r.csv", quoted)


def test_other_delimiters_are_named_for_headers_with_commas(tmp_path: Path) -> None:
    rows = [("1", "Adenoma.", "x"), ("2", "Nevus.", "y")]
    message = error_for_reports(tmp_path / "r.csv", table(";", ("id", "text", "note, other"), rows=rows))
    assert "separated by ';': save" in message


@pytest.mark.parametrize("mark", [",", "\t"])
def test_row_names_written_by_r_are_recognised(tmp_path: Path, mark: str) -> None:
    suffix = "csv" if mark == "," else "tsv"
    rows = [(f'"{n}"', f'"{a}"', f'"{b}"') for n, (a, b) in enumerate(tile_rows(), 1)]
    for message in (
        error_for_tiles(tmp_path / f"t.{suffix}", table(mark, ('"path"', '"label"'), rows=rows)),
        error_for_reports(tmp_path / f"r.{suffix}", table(mark, ('"id"', '"text"'), rows=rows)),
    ):
        assert "record 1 (line 2) has 3 fields, but the header has 2 (4 such rows)" in message
        assert "row.names = FALSE, or name the first column in the header; otherwise quote fields" in message


def test_unquoted_commas_are_not_row_names(tmp_path: Path) -> None:
    message = error_for_reports(tmp_path / "r.csv", "id,text\n1,colon, liver\n2,skin, scalp\n")
    assert "row.names" not in message and "fix: quote fields" in message


@pytest.mark.parametrize(
    ("above", "line"),
    [
        ("LIMS export 2024\n", 2),
        ("LIMS export 2024,\n", 2),
        ("# export\n", 2),
        ("LIMS export, May 2024\n", 2),
        ("LIMS export\n\nUser: Smith\n\n", 5),
    ],
)
def test_lines_above_the_header_are_recognised(tmp_path: Path, above: str, line: int) -> None:
    message = error_for_reports(tmp_path / "r.csv", table(",", ("id", "text"), above=above))
    assert ABOVE.format(line, "id", "text") in message
    assert "text_column" not in message
    message = error_for_tiles(tmp_path / "t.csv", table(",", ("path", "label"), above=above, rows=tile_rows()))
    assert ABOVE.format(line, "path", "label") in message
    assert "tiles.columns" not in message


def test_a_title_above_other_kinds_of_tables_is_recognised(tmp_path: Path) -> None:
    message = error_for_reports(tmp_path / "r.csv", table(";", ("id", "text"), above="LIMS export 2024\n"))
    assert "if line 2 (id, text) is the header" in message
    numbered = [("1", "Nevus"), ("2", "Adenoma")]
    message = error_for_reports(tmp_path / "r.csv", table(",", ("id", "text"), above="Export\n", rows=numbered))
    assert "if line 2 (id, text) is the header" in message
    message = error_for_reports(tmp_path / "r.csv", "LIMS export 2024\ntext\nAdenoma.\nNevus.\n")
    assert "if line 2 (text) is the header" in message
    (tmp_path / "m.csv").write_text("Patients 2024,\nid,organ\nS0,colon\n")
    keys = {"metadata": str(tmp_path / "m.csv"), "metadata_id_column": "id", "organ_column": "organ"}
    message = error_for_reports(tmp_path / "r.csv", table(",", ("id", "text")), **keys)
    assert "if line 2 (id, organ) is the header" in message


def test_short_headers_are_not_titles(tmp_path: Path) -> None:
    index = error_for_reports(tmp_path / "r.csv", ",id,report\n0,S0,Adenoma.\n1,S1,Nevus.\n")
    unnamed = error_for_reports(tmp_path / "r.csv", "id,report,\nS0,Adenoma.,seen\nS1,Nevus.,seen\n")
    single = error_for_reports(tmp_path / "r.csv", 'report\n"Adenoma;benign"\n"Nevus;benign"\n')
    assert all("set reports.text_column to one of these columns" in message for message in (index, unnamed, single))


def test_a_title_above_the_table_in_a_workbook_is_recognised(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["LIMS export 2024"], [], ["id", "text", "note"], ["S0", "Adenoma.", "x"], ["S1", "Nevus.", "y"]):
        book.active.append(row)
    book.save(tmp_path / "r.xlsx")
    with pytest.raises(DataError, match=r"if row 3 \(id, text, note\) is the header, delete the rows above it"):
        read_reports(ReportsConfig(path=str(tmp_path / "r.xlsx")))


@pytest.mark.parametrize(("mark", "word"), [(" ", "spaces"), (":", "':'")])
def test_tables_separated_by_spaces_or_colons_are_recognised(tmp_path: Path, mark: str, word: str) -> None:
    path = tmp_path / "t.csv"
    rows = [("q1.png", "a", "p1"), ("q2.png", "", "p2")]
    path.write_text(table(mark, ("path", "label", "group"), rows=rows))
    with pytest.raises(DataError, match=rf"read as one column that contains {word}: save the table"):
        read_tiles(TilesConfig(source="table", path=str(path)))
