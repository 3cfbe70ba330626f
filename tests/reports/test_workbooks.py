"""Reports and labels in xlsx files, and tables without a header."""

import re
import sys
import tracemalloc
import zipfile
from datetime import datetime, time
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from openpyxl.cell.rich_text import CellRichText, TextBlock
from openpyxl.cell.text import InlineFont
from openpyxl.chart import BarChart, Reference
from openpyxl.reader.excel import ExcelReader
from openpyxl.styles import Font

from clipit.config.run import ReportsConfig
from clipit.errors import DataError
from clipit.reports.readers import Reports, read_reports

HEADER = ["id", "text", "grade", "signed"]
FIRST = ["a", "Infiltrating glands.", 7.0, datetime(2024, 5, 31)]


def workbook(path: Path, *rows: list[Any], **sheets: list[list[Any]]) -> Path:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for row in rows:
        sheet.append(row)
    for name, sheet_rows in sheets.items():
        extra_sheet = book.create_sheet(name)
        for row in sheet_rows:
            extra_sheet.append(row)
    book.save(path)
    return path


def edit_workbook(path: Path, edit: Any) -> Path:
    book = openpyxl.load_workbook(path)
    edit(book.active)
    book.save(path)
    return path


def read(path: Path, **keys: Any) -> Reports:
    columns = {"id_column": "id", "label_column": "grade", "date_column": "signed"}
    return read_reports(ReportsConfig(path=str(path), **{**columns, **keys}))


def test_numbers_and_dates_are_read_as_in_a_csv(tmp_path: Path) -> None:
    path = workbook(tmp_path / "r.xlsx", HEADER, FIRST, [], ["b", "Benign.", 3.5, None, None], Empty=[])
    reports = read(path).reports
    assert [(r.report_id, r.text, r.label, r.date) for r in reports] == [
        ("a", "Infiltrating glands.", "7", "2024-05-31"),
        ("b", "Benign.", "3.5", None),
    ]


def test_a_workbook_with_several_sheets_requires_a_sheet_name(tmp_path: Path) -> None:
    path = workbook(tmp_path / "r.xlsx", ["notes"], Reports=[HEADER, FIRST])
    with pytest.raises(DataError, match=r"2 sheets contain data: Sheet, Reports(.|\n)*reports\.sheet"):
        read(path)
    assert len(read(path, sheet="Reports").reports) == 1
    with pytest.raises(DataError, match=r"no worksheet 'reports'; the worksheets are Sheet, Reports"):
        read(path, sheet="reports")


def test_merged_cells_formulas_and_error_values_are_an_error(tmp_path: Path) -> None:
    path = workbook(tmp_path / "r.xlsx", HEADER, FIRST)
    with pytest.raises(DataError, match=r"merged cells: C2:C3(.|\n)*unmerge"):
        read(edit_workbook(path, lambda sheet: sheet.merge_cells("C2:C3")))
    path = workbook(tmp_path / "f.xlsx", HEADER, ["a", "Glands.", "=3+4", None])
    with pytest.raises(DataError, match=r"1 formula without a saved value: C2"):
        read(path)
    path = workbook(tmp_path / "e.xlsx", HEADER, ["a", "Glands.", "#REF!", None], ["b", "Glands", "#N/A", None])
    with pytest.raises(DataError, match=r"1 error value: C2"):
        read(path)
    path = workbook(tmp_path / "w.xlsx", HEADER, [*FIRST, "beyond"])
    with pytest.raises(DataError, match=r"1 value in columns without a name: E2"):
        read(path)


def test_a_formula_is_read_as_its_saved_value(tmp_path: Path) -> None:
    path = workbook(tmp_path / "plain.xlsx", HEADER, ["a", "Glands.", "=3+4", None])
    saved = tmp_path / "saved.xlsx"
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(saved, "w") as after:
        for name in before.namelist():
            content = re.sub(rb"(</f>)<v\s*/>|(</f>)<v></v>", rb"</f><v>7</v>", before.read(name))
            after.writestr(name, content)
    assert [report.label for report in read(saved).reports] == ["7"]


def test_damaged_and_legacy_workbooks_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.xlsx"
    path.write_bytes(b"PK no zip")
    with pytest.raises(DataError, match="cannot read this workbook"):
        read(path)
    path.rename(tmp_path / "r.xls")
    with pytest.raises(DataError, match=r"'\.xls'(.|\n)*save it as \.xlsx or \.csv"):
        read(tmp_path / "r.xls")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DataError, match=r"openpyxl, which is not installed(.|\n)*pip install"):
        read(workbook_without_import(tmp_path))


def workbook_without_import(folder: Path) -> Path:
    (folder / "n.xlsx").write_bytes(b"PK")
    return folder / "n.xlsx"


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".xlsx"])
def test_columns_of_a_table_without_a_header_are_named_by_position(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"r{suffix}"
    rows = [["P1", "Infiltrating glands."], ["P2", "Benign mucosa."]]
    if suffix == ".xlsx":
        workbook(path, *rows)
    else:
        path.write_text("\n".join(("," if suffix == ".csv" else "\t").join(row) for row in rows))
    reports = read_reports(ReportsConfig(path=str(path), columns=("patient", "text"), group_column="patient"))
    assert [(r.group, r.text) for r in reports.reports] == [(row[0], row[1]) for row in rows]


def test_missing_header_and_superfluous_column_names_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text(f"1,{'Infiltrating glands. ' * 5}\n2,Benign mucosa.\n")
    with pytest.raises(DataError, match=r"no column 'text'(.|\n)*has no header(.|\n)*--reports\.columns"):
        read_reports(ReportsConfig(path=str(path)))
    with pytest.raises(DataError, match=r"has 2 fields, but the list of columns has 3"):
        read_reports(ReportsConfig(path=str(path), columns=("a", "text", "c")))
    path.write_text("a,text\n2,Benign mucosa.\n")
    with pytest.raises(DataError, match="the first row is a header"):
        read_reports(ReportsConfig(path=str(path), columns=("a", "text")))


def test_line_breaks_escaped_by_excel_are_decoded(tmp_path: Path) -> None:
    text = "First line._x000D_\nSecond line, named _x005F_x000D_."
    (report,) = read(workbook(tmp_path / "r.xlsx", HEADER, ["a", text, 1, None])).reports
    assert report.text == "First line.\nSecond line, named _x000D_."


def test_a_formatted_cell_far_away_does_not_exhaust_memory(tmp_path: Path) -> None:
    path = workbook(tmp_path / "r.xlsx", HEADER, FIRST)

    def format_far_cell(sheet: Any) -> None:
        sheet.cell(600, 600).number_format = "0.00"

    edit_workbook(path, format_far_cell)
    read(path)
    tracemalloc.start()
    assert len(read(path).reports) == 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # 360,000 empty cells take 60 MB


@pytest.mark.parametrize(
    ("number_format", "value", "shown"),
    [
        ("0000", 7, "0007"),
        ('"P"000', 7, "P007"),
        ("00-00", 7, "00-07"),
        ("000-00-0000", 123456789, "123-45-6789"),
        ("[$-409]0000_ ;-0000", 7, "0007"),
        ("[Red]\\S000;@", 12345, "S12345"),
        ("#", 0, "0"),
        ("#,##0.00", 7, "7"),
        ("General", 7, "7"),
    ],
)
def test_whole_numbers_are_read_as_their_number_format_shows_them(
    number_format: str, value: int, shown: str, tmp_path: Path
) -> None:
    path = workbook(tmp_path / "r.xlsx", HEADER, [value, "Benign.", 3, None])

    def change_format(sheet: Any) -> None:
        sheet["A2"].number_format = number_format

    edit_workbook(path, change_format)
    assert [(r.report_id, r.label) for r in read(path).reports] == [(shown, "3")]


def test_merged_columns_do_not_exhaust_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, merged = workbook(tmp_path / "r.xlsx", HEADER, FIRST), tmp_path / "merged.xlsx"
    cells = b'<mergeCells><mergeCell ref="F1:AA1048576"/></mergeCells>'
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(merged, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b"</sheetData>", b"</sheetData>" + cells))
    monkeypatch.setattr(ExcelReader, "read", lambda reader: pytest.fail("openpyxl would create 23 million cells"))
    with pytest.raises(DataError, match=r"merged cells: F1:AA1048576(.|\n)*unmerge"):
        read(merged)


def test_charts_are_skipped_and_hidden_and_empty_sheets_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = workbook(tmp_path / "r.xlsx", Reports=[HEADER, FIRST])
    book = openpyxl.load_workbook(path)
    chart = BarChart()
    chart.add_data(Reference(book["Reports"], min_col=3, min_row=1, max_row=2))
    book.create_chartsheet("Plot").add_chart(chart)  # type: ignore[no-untyped-call]
    book.create_chartsheet("Bare")
    book["Reports"].sheet_state = "hidden"
    book.save(path)
    caplog.set_level("INFO")
    assert len(read(path).reports) == 1
    assert "note: r.xlsx: reading the sheet Reports (hidden); empty: Sheet" in caplog.text
    with pytest.raises(DataError, match=r"no worksheet 'Plot'; the worksheets are Sheet, Reports \(hidden\)"):
        read(path, sheet="Plot")
    book.remove(book["Sheet"])
    book.remove(book["Reports"])
    book.remove(book["Plot"])
    book.save(path)
    with pytest.raises(DataError, match="the workbook contains only charts: Bare"):
        read(path)


def test_hidden_rows_columns_and_sheets_are_read_and_counted(tmp_path: Path) -> None:
    """Rows hidden by a filter are read like the others, so their number is reported."""
    path = workbook(tmp_path / "r.xlsx", HEADER, FIRST, ["b", *FIRST[1:]], ["c", *FIRST[1:]], ["d", *FIRST[1:]])

    def edit(sheet: Any) -> None:
        sheet.auto_filter.ref = "A1:D5"
        sheet.row_dimensions[3].hidden = sheet.row_dimensions[4].hidden = True
        sheet.row_dimensions[90].hidden = sheet.column_dimensions["K"].hidden = True  # hidden, but empty
        sheet.column_dimensions.group("B", "C", hidden=True)

    reports = read(edit_workbook(path, edit))
    assert len(reports.reports) == 4
    (problem,) = reports.problems
    assert "sheet 'Sheet': 2 hidden rows (3, 4) and 2 hidden columns (B, C), read like the others" in problem

    def hide_sheet(sheet: Any) -> None:
        sheet.parent.create_sheet("Empty")
        sheet.sheet_state = "hidden"

    assert ": hidden sheet and 2 hidden rows" in read(edit_workbook(path, hide_sheet)).problems[0]
    plain = workbook(tmp_path / "plain.xlsx", HEADER, FIRST)
    assert not read(plain).problems
    joined = read(plain, metadata=str(path), metadata_id_column="id", organ_column="grade")
    assert "hidden rows" in joined.problems[0] and joined.reports[0].organ == "7"


def test_struck_through_text_is_read_and_counted(tmp_path: Path) -> None:
    """Strikethrough of whole cells and of parts of a cell."""
    path = workbook(tmp_path / "r.xlsx", HEADER, FIRST, ["b", *FIRST[1:]], ["c", *FIRST[1:]])

    def edit(sheet: Any) -> None:
        sheet["A2"].font = Font(strike=True)
        sheet["B9"].font = Font(strike=True)  # without a value
        sheet["B3"].value = CellRichText("Adenoma. ", TextBlock(InlineFont(strike=True), "Carcinoma."))

    reports = read(edit_workbook(path, edit))
    assert len(reports.reports) == 3 and reports.reports[1].text == "Adenoma. Carcinoma."
    (problem,) = reports.problems
    assert problem.startswith("WARNING: ") and "sheet 'Sheet': 2 cells with text that is struck through" in problem
    assert "A2, B3" in problem


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["1.20E+11", "P2"], r"1 value in column id: '1\.20E\+11' in row 2"),
        ([12345678901234567890, "P2"], r"'1\.234567890123457e\+19' in row 2"),
        (["P1", datetime(2024, 9, 2)], "'2024-09-02' in row 3"),
        (["P1", "2-Sep"], "'2-Sep' in row 3"),
        (["P1", "02. Mär"], "'02. Mär' in row 3"),
        ([time(3, 4), "P2"], "'03:04:00' in row 2"),
        (["####", "Sep-02"], "2 values .*'####' in row 2, 'Sep-02' in row 3"),
    ],
)
def test_ids_altered_by_a_spreadsheet_are_an_error(tmp_path: Path, names: list[Any], problem: str) -> None:
    rows = [[name, f"Text of report {number}.", 1, None] for number, name in enumerate(names)]
    path = workbook(tmp_path / "r.xlsx", HEADER, *rows)
    for columns in ({"id_column": "id"}, {"id_column": None, "group_column": "id"}):
        with pytest.raises(DataError, match=problem):
            read(path, **columns)


def test_columns_of_only_numbers_or_dates_are_valid_ids(tmp_path: Path) -> None:
    for names in ([120000000001, 7], [datetime(2024, 9, 2), datetime(2024, 9, 3)], ["1E5", "12E+1"]):
        rows = [[name, f"Text of report {number}.", 1, None] for number, name in enumerate(names)]
        assert len(read(workbook(tmp_path / "r.xlsx", HEADER, *rows)).reports) == 2
