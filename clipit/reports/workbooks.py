"""Read a sheet of an Excel workbook (.xlsx) as a table of texts."""

import re
import zipfile
from collections.abc import Sequence
from datetime import date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipit.data_files import CsvTable, check_column_names
from clipit.errors import DataError, counted, is_limit, shortlist

if TYPE_CHECKING:
    from openpyxl.cell.cell import Cell
    from openpyxl.workbook import Workbook
    from openpyxl.worksheet.worksheet import Worksheet

_LARGEST = 2**30  # bytes of an unpacked workbook
_ESCAPED = re.compile(r"_x(00[01][0-9A-Fa-f]|005[Ff])_")
"""Control characters as Excel stores them, such as _x000D_ for a carriage return, which openpyxl does not decode."""
_MISSING = ("#N/A", "#NULL!")  # error values that mark missing values


def read_workbook(path: Path, sheet: str | None, columns: Sequence[str] | None, key: str) -> CsvTable:
    """Read one sheet of a workbook.

    Whole numbers are read without ".0", dates as 2024-05-31, and formulas as their saved values. Empty rows, and empty
    columns without a name, are skipped.

    Args:
        path: The file.
        sheet: Name of the sheet; None for the only one that is not empty.
        columns: Names of the columns by position, if the sheet has no header; None if the first row is the header.
        key: Configuration key that names the sheet, for error messages.

    Raises:
        DataError: openpyxl is not installed; the file is damaged or too large; the sheet is missing or ambiguous; or it
            has merged cells, error values, formulas without a saved value, repeated column names or rows beyond the
            last column.
    """
    worksheet = _choose_sheet(_load(path, values=False), sheet, path, key)
    where = f"{path}, sheet {worksheet.title!r}"
    if worksheet.merged_cells.ranges:
        merged = sorted(str(cells) for cells in worksheet.merged_cells.ranges)
        raise DataError(
            f"merged cells: {shortlist(merged)}",
            where=where,
            fix="unmerge them, and repeat the value in every cell",
        )
    filled = [[cell for cell in row if cell.value is not None] for row in worksheet.iter_rows()]
    if any(cell.data_type == "f" for row in filled for cell in row):
        saved = _load(path, values=True)[worksheet.title]
        filled = [[saved[cell.coordinate] for cell in row] for row in filled]
        lost = [cell.coordinate for row in filled for cell in row if cell.value is None]
        if lost:
            raise DataError(
                f"{counted(len(lost), 'formula')} without a saved value: {shortlist(lost)}",
                where=where,
                fix="open and save the file in a spreadsheet program, or replace the formulas with their values",
            )
    wrong = [cell.coordinate for row in filled for cell in row if cell.data_type == "e" and cell.value not in _MISSING]
    if wrong:
        raise DataError(
            f"{counted(len(wrong), 'error value')}: {shortlist(wrong)}", where=where, fix="correct these cells"
        )
    return _table(filled, columns, where)


def _load(path: Path, *, values: bool) -> "Workbook":
    """Open a workbook, with the saved values of formulas or with the formulas themselves."""
    try:
        import openpyxl
    except ImportError:
        raise DataError(
            "reading .xlsx files needs the package openpyxl, which is not installed",
            where=path,
            fix="pip install openpyxl, or save the sheet as .csv",
        ) from None
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > _LARGEST:
            raise DataError(
                f"the workbook takes {size:,} bytes when unpacked (the limit is {_LARGEST:,})",
                where=path,
                fix="save the sheet as .csv",
            )
        return openpyxl.load_workbook(path, data_only=values)
    except (DataError, PermissionError, MemoryError):
        raise
    except Exception as error:  # openpyxl and its XML parser raise many kinds of exceptions for damaged files
        if is_limit(error):
            raise
        raise DataError(
            f"cannot read this workbook: {error or type(error).__name__}",
            where=path,
            fix="save it again as .xlsx (without a password), or save the sheet as .csv",
        ) from error


def _choose_sheet(workbook: "Workbook", name: str | None, path: Path, key: str) -> "Worksheet":
    sheets = {sheet.title: sheet for sheet in workbook.worksheets}
    if name is not None:
        if name not in sheets:
            raise DataError(
                f"no sheet {name!r}; the sheets are {shortlist(list(sheets))}", where=path, fix=f"set {key}"
            )
        return sheets[name]
    filled = [title for title, sheet in sheets.items() if any(map(any, sheet.iter_rows(values_only=True)))]
    if len(filled) != 1:
        raise DataError(
            f"{counted(len(filled), 'sheet contains', 'sheets contain')} data: {shortlist(filled)}"
            if filled
            else "all sheets are empty",
            where=path,
            fix=f"name one of them in {key} (--{key}={filled[0]!r})" if filled else "use another file",
        )
    return sheets[filled[0]]


def _table(filled: Sequence[Sequence["Cell"]], columns: Sequence[str] | None, where: str) -> CsvTable:
    rows = [row for row in filled if row]
    header: dict[int, str] = {}
    if columns is not None:
        header = dict(enumerate(columns, 1))
    elif rows:
        header = {cell.column: _text(cell.value).strip() for cell in rows.pop(0)}
    check_column_names(list(header.values()), where)
    beyond = [cell.coordinate for row in rows for cell in row if cell.column not in header]
    if beyond:
        raise DataError(
            f"{counted(len(beyond), 'value')} in columns without a name: {shortlist(beyond)}",
            where=where,
            fix="name these columns in the first row" if columns is None else "name all columns in reports.columns",
        )
    texts = [{cell.column: _text(cell.value) for cell in row} for row in rows]
    return CsvTable(
        list(header.values()),
        [[row.get(column, "") for column in header] for row in texts],
        [row[0].row for row in rows],
    )


def _text(value: Any) -> str:

    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, datetime):
        return (value.date() if value.time() == time() else value).isoformat()
    if isinstance(value, str):
        return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), value).replace("\r\n", "\n")
    return value.isoformat() if isinstance(value, date | time) else str(value)
