"""Read a sheet of an Excel workbook (.xlsx) as a table of strings."""

import functools
import logging
import re
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipit.errors import DataError, counted, is_limit, shortlist
from clipit.input_files.csv_delimiter import layout_hint
from clipit.input_files.csv_tables import CsvTable, check_column_names
from clipit.input_files.zip_files import open_zip

if TYPE_CHECKING:
    from openpyxl.cell.cell import Cell
    from openpyxl.workbook import Workbook
    from openpyxl.worksheet.worksheet import Worksheet

logger = logging.getLogger(__name__)

_NO_DATA = "use a workbook that has a sheet with data"
_MAX_BYTES = 2**30  # maximum size of an unpacked workbook in bytes
_SHEET = re.compile(r"xl/worksheets/[^/]+\.xml")
_MERGED = re.compile(rb'<(?:\w+:)?mergeCell [^<>]*?ref="([A-Z]{1,3})(\d{1,7}):([A-Z]{1,3})(\d{1,7})"')
_STRIKE = re.compile(rb"<(?:\w+:)?strike\b")
_MAX_MERGED = 10**6  # maximum number of merged cells in a sheet
_CHUNK, _MAX_TAG = 2**20, 200  # number of bytes read at once, and maximum length of a tag in bytes
_ESCAPED = re.compile(r"_x(00[01][0-9A-Fa-f]|005[Ff])_")
"""Control characters as Excel stores them, such as _x000D_ for a carriage return; openpyxl does not decode them."""
_FORMAT_PART = re.compile(r'"([^"]*)"|\\(.)|\[\$([^\]-]*)(?:-[^\]]*)?\]|([0#?])|[_*].|\[[A-Za-z]+\]|([-+() :])')
"""Parts of a number format: quoted text, an escaped character, a currency symbol with or without a locale code, a digit
placeholder, a space as wide as a character, a colour, and characters that need no quotes. Formats with other parts,
such as a decimal point, are not applied."""
_MISSING = ("#N/A", "#NULL!")  # error values that mark missing values


def read_workbook(path: Path, sheet: str | None, columns: Sequence[str] | None, key: str) -> CsvTable:
    """Read one sheet of a workbook.

    Whole numbers are read without ".0" and with the leading zeros and the text of their number format, dates as
    2024-05-31, and formulas as their saved values. Empty rows, and empty columns without a name, are skipped. Hidden
    rows and columns, such as those of a filtered table, and text that is struck through, which may mean that it is
    deleted, are read and counted in the notes of the result.

    Args:
        sheet: Name of the sheet; None for the only sheet that is not empty.
        columns: Names of the columns by position, if the sheet has no header; None if the first row is the header.
        key: Configuration key that names the sheet, for error messages.

    Raises:
        DataError: openpyxl is not installed; the file is damaged or too large; the sheet is missing or ambiguous; or it
            has merged cells, error values, formulas without a saved value, repeated column names or values in columns
            without a name.
    """
    worksheet = _choose_sheet(_load(path), sheet, path, key)
    where = f"{path}, sheet {worksheet.title!r}"
    if worksheet.merged_cells.ranges:
        merged = sorted(str(cells) for cells in worksheet.merged_cells.ranges)
        raise DataError(
            f"merged cells: {shortlist(merged)}",
            where=where,
            fix="unmerge them, and repeat the value in every cell; delete titles above the header",
        )
    filled = _filled_rows(worksheet)
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
    errors = [cell.coordinate for row in filled for cell in row if cell.data_type == "e" and cell.value not in _MISSING]
    if errors:
        raise DataError(
            f"{counted(len(errors), 'error value')}: {shortlist(errors)}", where=where, fix="correct these cells"
        )
    notes = (*_hidden_notes(worksheet, filled, where), *_struck_notes(worksheet, filled, where, path))
    return replace(_table(filled, columns, where), notes=notes)


def _load(path: Path, *, values: bool = False, rich_text: bool = False) -> "Workbook":
    """Open a workbook.

    Args:
        values: Whether to read the saved values of formulas instead of the formulas.
        rich_text: Whether to keep the fonts of parts of a cell.
    """
    try:
        import openpyxl  # noqa: F401
        from openpyxl.reader.excel import ExcelReader
    except ImportError:
        raise DataError(
            "reading .xlsx files needs the package openpyxl, which is not installed",
            where=path,
            fix="pip install openpyxl, or save the sheet as .csv",
        ) from None
    try:
        with open_zip(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
            if size > _MAX_BYTES:
                raise DataError(
                    f"the workbook takes {size:,} bytes when unpacked (the limit is {_MAX_BYTES:,})",
                    where=path,
                    fix="save the sheet as .csv",
                )
            _check_merged(archive, path)

        class SheetReader(ExcelReader):
            """Reader that skips chart sheets, some of which openpyxl cannot read."""

            def read_chartsheet(self, sheet: Any, rel: Any) -> None:
                charts.append(sheet.name)

        charts: list[str] = []
        reader = SheetReader(path, data_only=values, rich_text=rich_text)
        reader.read()
        if not reader.wb.worksheets:
            raise DataError(f"the workbook contains only charts: {shortlist(charts)}", where=path, fix=_NO_DATA)
        return reader.wb
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


def _check_merged(archive: zipfile.ZipFile, path: Path) -> None:
    """Reject large merged areas, such as two whole columns: openpyxl would create an object for each of their cells.

    Raises:
        DataError: The merged areas of a sheet have more than a million cells.
    """
    for info in archive.infolist():
        if not _SHEET.fullmatch(info.filename):
            continue
        areas: dict[str, int] = {}
        with archive.open(info) as stream:
            end = b""
            while chunk := stream.read(_CHUNK):
                for left, top, right, bottom in _MERGED.findall(end + chunk):
                    columns, rows = _column(right) - _column(left) + 1, int(bottom) - int(top) + 1
                    areas[f"{(left + top).decode()}:{(right + bottom).decode()}"] = columns * rows
                end = chunk[-_MAX_TAG:]
        if sum(areas.values()) > _MAX_MERGED:
            raise DataError(
                f"merged cells: {shortlist(sorted(areas))}",
                where=f"{path}, {info.filename}",
                fix="unmerge them, and repeat the value in every cell",
            )


def _column(letters: bytes) -> int:
    """Return the number of a column: A is 1, AA is 27."""
    return functools.reduce(lambda number, letter: 26 * number + letter - 64, letters, 0)


def _choose_sheet(workbook: "Workbook", name: str | None, path: Path, key: str) -> "Worksheet":
    sheets = {sheet.title: sheet for sheet in workbook.worksheets}

    def shown(titles: Sequence[str]) -> str:
        hidden = {title: "" if sheet.sheet_state == "visible" else " (hidden)" for title, sheet in sheets.items()}
        return shortlist([title + hidden[title] for title in titles])

    if name is not None:
        if name not in sheets:
            raise DataError(
                f"no worksheet {name!r}; the worksheets are {shown(list(sheets))}",
                where=path,
                fix=f"set {key} to one of them",
            )
        return sheets[name]
    filled = [title for title, sheet in sheets.items() if any(c.value for row in _filled_rows(sheet) for c in row)]
    if len(filled) != 1:
        raise DataError(
            f"{counted(len(filled), 'sheet contains', 'sheets contain')} data: {shown(filled)}"
            if filled
            else f"all sheets are empty: {shown(list(sheets))}",
            where=path,
            fix=f"set {key} to one of these sheets (--{key}={filled[0]!r})" if filled else _NO_DATA,
        )
    others = [title for title in sheets if title not in filled]
    if others or sheets[filled[0]].sheet_state != "visible":
        empty = f"; empty: {shown(others)}" if others else ""
        logger.info(f"note: {path.name}: reading the sheet {shown(filled)}{empty}")
    return sheets[filled[0]]


def _filled_rows(worksheet: "Worksheet") -> list[list["Cell"]]:
    """Return the cells with a value, by row.

    Only cells that the file lists are visited: if a single cell is formatted in the last row that Excel allows,
    `iter_rows` would create billions of cells.
    """
    rows: dict[int, list[Cell]] = {}
    for (row, _), cell in sorted(worksheet._cells.items(), key=lambda item: item[0]):
        if cell.value is not None:
            rows.setdefault(row, []).append(cell)
    return list(rows.values())


def _hidden_notes(worksheet: "Worksheet", filled: Sequence[Sequence["Cell"]], where: str) -> tuple[str, ...]:
    """Describe hidden rows and columns with values; filters hide rows, and collapsed outlines hide both."""
    default = bool(worksheet.sheet_format.zeroHeight)
    dimensions, hidden_columns = worksheet.row_dimensions, set[int]()
    for column in worksheet.column_dimensions.values():
        if column.hidden or column.width == 0:
            hidden_columns.update(range(column.min or 0, (column.max or 0) + 1))
    rows = [
        number
        for number in (row[0].row for row in filled if row)
        if (dimensions[number].hidden or dimensions[number].height == 0 if number in dimensions else default)
    ]
    names = {cell.column: cell.column_letter for row in filled for cell in row if cell.column in hidden_columns}
    parts = ["hidden sheet"] if worksheet.sheet_state != "visible" else []
    parts += [counted(len(rows), "hidden row") + f" ({shortlist(rows)})"] if rows else []
    parts += [counted(len(names), "hidden column") + f" ({shortlist(list(names.values()))})"] if names else []
    if not parts:
        return ()
    return (f"{where}: {' and '.join(parts)}, read like the others; if they do not belong to the data, delete them",)


def _struck_notes(
    worksheet: "Worksheet", filled: Sequence[Sequence["Cell"]], where: str, path: Path
) -> tuple[str, ...]:
    """Describe cells whose text is struck through, wholly or in part."""
    with open_zip(path) as archive:
        texts = [name for name in archive.namelist() if name == "xl/sharedStrings.xml" or _SHEET.fullmatch(name)]
        in_parts = any(_STRIKE.search(archive.read(name)) for name in texts)
    rich = _load(path, rich_text=True)[worksheet.title] if in_parts else worksheet
    in_cells = any(font.strike for font in worksheet.parent._fonts)  # type: ignore[union-attr]
    cells = [
        cell.coordinate
        for row in filled
        for cell in row
        if (in_cells and cell.font.strike) or (in_parts and _is_partly_struck(rich[cell.coordinate].value))
    ]
    if not cells:
        return ()
    return (
        f"WARNING: {where}: {counted(len(cells), 'cell')} with text that is struck through, read like the others: "
        f"{shortlist(cells)}; if this text does not belong to the data, delete it",
    )


def _is_partly_struck(value: Any) -> bool:
    """Return whether a part of a text with several fonts (`CellRichText`, a list) is struck through."""
    fonts = [getattr(part, "font", None) for part in value] if isinstance(value, list) else []
    return any(font is not None and font.strike for font in fonts)


def _table(filled: Sequence[Sequence["Cell"]], columns: Sequence[str] | None, where: str) -> CsvTable:
    rows = [row for row in filled if row]
    header: dict[int, str] = {}
    if columns is not None:
        header = dict(enumerate(columns, 1))
    elif rows:
        header = {cell.column: _text(cell).strip() for cell in rows.pop(0)}
    check_column_names(list(header.values()), where)
    texts = [{cell.column: _text(cell) for cell in row} for row in rows]
    numbers = [row[0].row for row in rows]
    beyond = [cell.coordinate for row in rows for cell in row if cell.column not in header]
    if beyond:
        used = range(1, max(cell.column for row in rows for cell in row) + 1)
        first, *others = [[row.get(column, "") for column in used] for row in (header, *texts)]
        hint = layout_hint(first, others, numbers, unit="row")
        hint = hint and f"{hint}; otherwise "
        raise DataError(
            f"{counted(len(beyond), 'value')} in columns without a name: {shortlist(beyond)}",
            where=where,
            fix="name all columns in reports.columns" if columns else f"{hint}name these columns in the first row",
        )
    return CsvTable(
        list(header.values()),
        [[row.get(column, "") for column in header] for row in texts],
        numbers,
        unit="row",
    )


def _text(cell: "Cell") -> str:
    value: Any = cell.value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if type(value) is int:
        return _shown(value, cell.number_format)
    if isinstance(value, datetime):
        return (value.date() if value.time() == time() else value).isoformat()
    if isinstance(value, str):
        return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), value).replace("\r\n", "\n")
    return value.isoformat() if isinstance(value, date | time) else str(value)


def _shown(value: int, number_format: str) -> str:
    """Format a whole number as Excel displays it and exports it to csv: 7 as 0007, P007 or 00-07.

    Only formats that consist of digits and text are applied, and only to non-negative numbers.
    """
    sections = re.split(r';(?=(?:[^"]*"[^"]*")*[^"]*$)', number_format)
    parts, at = list[tuple[str, bool]](), 0  # text, and whether it is a digit placeholder
    while match := _FORMAT_PART.match(sections[0], at):
        quoted, escaped, locale, digit, plain = match.groups()
        parts.append((digit, True) if digit else (quoted or escaped or locale or plain or "", False))
        at = match.end()
    places = [index for index, (_, is_digit) in enumerate(parts) if is_digit]
    invisible = value == 0 and (len(sections) > 2 or all(parts[index][0] != "0" for index in places))
    if at < len(sections[0]) or not places or value < 0 or invisible:
        return str(value)
    digits, texts = str(value) if value else "", [text for text, _ in parts]
    for index in reversed(places):
        missing = {"0": "0", "#": "", "?": ""}[texts[index]]
        texts[index], digits = (digits[-1], digits[:-1]) if digits else (missing, "")
    texts[places[0]] = digits + texts[places[0]]
    return "".join(texts).strip()
