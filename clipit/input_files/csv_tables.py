"""Read csv tables; errors about damaged rows and headers suggest a fix."""

import csv
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipit.errors import DataError, counted, shortlist
from clipit.input_files.csv_delimiter import has_semicolons, layout_hint, quoted_hint, ragged_hint
from clipit.input_files.zip_files import reject_compressed

logger = logging.getLogger(__name__)

_MAX_FIELD = 2**31 - 1  # the csv module's default of 128 KiB is too short for some reports
_START = 4096  # bytes at the start of a file that are searched for null characters
_AMBIGUOUS_COLUMNS, _PROSE_COLUMNS = 2, 3  # maximum number of columns of tables whose rows resemble lines of text
_LINE_BREAK = re.compile(r"\r\n?|\n")
_ZIP = b"PK\3\4"
PARQUET = b"PAR1\x15"
"""First bytes of parquet files."""
_END_MARK = "\x1a"
"""Control-Z, with which DOS programs end a file."""
_SAVE_AS_UTF8 = "save the table as UTF-8 (in Excel: CSV UTF-8)"


@dataclass(frozen=True)
class CsvTable:
    """A csv file or sheet.

    Attributes:
        lines: Line on which each row starts.
        unit: Word for a row in messages: line (csv files) or row (sheets).
    """

    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    notes: tuple[str, ...] = ()
    delimiter: str = ","
    unit: str = "line"

    def hint(self, wanted: Collection[str] = ()) -> str:
        """Return advice if the table lacks columns because of its header or delimiter (see `layout_hint`)."""
        return layout_hint(self.header, self.rows, self.lines, wanted=wanted, delimiter=self.delimiter, unit=self.unit)


def read_csv(
    path: Path, delimiter: str = ",", encoding: str = "utf-8-sig", columns: Sequence[str] | None = None
) -> CsvTable:
    """Read a csv file; quoted fields may contain line breaks.

    Empty lines are skipped. Rows without a value, which spreadsheet programs write, are skipped and counted in the log.

    Args:
        delimiter: Character between fields. Semicolons are recognised instead of commas (see `has_semicolons`).
        encoding: Name of the Python codec.
        columns: Names of the columns by position, if the file has no header; None if its first row is the header.

    Raises:
        DataError: The file has unmatched quotes, a repeated column name, a column name that contains rows, or a row of
            the wrong length; or some rows, but not all, end in a carriage return alone.
        UnicodeError: The file is not in this encoding.
    """
    csv.field_size_limit(_MAX_FIELD)
    if delimiter == "," and columns is None and has_semicolons(path, encoding):
        delimiter = ";"
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    blank: list[int] = []
    ends = _RowEnds()
    with path.open(encoding=encoding, newline="") as stream:
        reader = csv.reader(ends.watch(without_end_mark(stream)), delimiter=delimiter, strict=True)
        line = 1
        try:
            header = [name.strip() for name in next(filter(any, reader), [])] if columns is None else list(columns)
            if columns is None:
                ends.add(header, line)
            line = reader.line_num + 1
            for row in reader:
                ends.add(row, line)
                if len(row) > 1 and not any(map(str.strip, row)):
                    blank.append(line)
                elif row:
                    rows.append(row)
                    lines.append(line)
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"malformed row: {error}" + (f" on line {reader.line_num}" if reader.line_num > line else ""),
                where=f"{path}, row that starts on line {line}",
                fix=("" if header else quoted_hint(ends.last))
                or "close the quotation marks, and double those inside a quoted field",
            ) from error
    ends.check(path)
    if blank:
        listed = shortlist([f"line {line}" for line in blank])
        logger.info(f"note: {path}: skipped {counted(len(blank), 'row')} without a value: {listed}")
    column = _joined_column(header, delimiter)
    if column is not None:
        raise _joined_rows_error("the header", header[column], f"name {column + 1}", path)
    check_column_names(header, path)
    ragged = [index for index, row in enumerate(rows) if len(row) != len(header)]
    if ragged:
        first = ragged[0]
        raise DataError(
            f"record {first + 1} (line {lines[first]}) has {counted(len(rows[first]), 'field')}, "
            f"but {'the header' if columns is None else 'the list of columns'} has {len(header)} "
            f"({counted(len(ragged), 'such row')})",
            where=path,
            fix=ragged_hint(header, rows, lines, delimiter)
            if columns is None
            else ragged_hint(rows[first], [], [], delimiter),
        )
    return CsvTable(header, rows, lines, delimiter=delimiter)


def without_end_mark(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a file, without the control character (0x1A) with which old DOS programs end it."""
    last = None
    for line in lines:
        if last is not None:
            yield last
        last = line
    if last is not None and (text := last.rstrip("\r\n")).endswith(_END_MARK):
        last = text.rstrip(_END_MARK)
    if last:
        yield last


def read_utf8_csv(path: Path, delimiter: str = ",") -> CsvTable:
    """Read a csv file that must be UTF-8; see `read_csv`.

    Raises:
        DataError: The file is not UTF-8, a stray quotation mark joins rows, or `read_csv` rejects the file.
    """
    with path.open("rb") as stream:
        start = stream.read(_START)
    reject_compressed(start, path)
    if start.startswith(_ZIP):
        raise DataError("the file is a workbook (.xlsx) or a zip", where=path, fix="save the sheet as .csv")
    if start.startswith(PARQUET):
        fix = "name the file .parquet, or, where only .csv is read, save the table as .csv"
        raise DataError("the file is a parquet file, not plain text", where=path, fix=fix)
    if start.count(0) > len(start) // 4:
        raise DataError("many null characters: the table is probably UTF-16 text", where=path, fix=_SAVE_AS_UTF8)
    try:
        table = read_csv(path, delimiter)
    except UnicodeDecodeError:
        with path.open("rb") as stream:
            decodable = (line == line.decode(errors="ignore").encode() for line in stream)
            number = next((number for number, is_valid in enumerate(decodable, 1) if not is_valid), 1)
        raise DataError("not UTF-8 text", where=f"{path}, line {number}", fix=_SAVE_AS_UTF8) from None
    _check_joined_rows(table, path)
    return table


def _check_joined_rows(table: CsvTable, where: object) -> None:
    """Reject a cell that contains additional rows because of a stray quotation mark (see `joined_rows`)."""
    for row, column in joined_rows(table):
        record = f"record {row + 1} (line {table.lines[row]})"
        raise _joined_rows_error(record, table.rows[row][column], f"column {table.header[column].strip()}", where)


def _joined_rows_error(row: str, cell: str, column: str, where: object) -> DataError:
    count = sum(bool(line.strip()) for line in _LINE_BREAK.split(cell)[1:])
    return DataError(
        f"{row} contains {counted(count, 'additional row')} in {column}",
        where=where,
        fix="remove the stray quotation marks, or double those that belong to the text; if the cell is one text, "
        "replace its line breaks with spaces",
    )


def joined_rows(table: CsvTable) -> list[tuple[int, int]]:
    """Find rows and columns of cells to which a stray quotation mark joined later rows (see `_joined_column`)."""
    columns = (_joined_column(cells, table.delimiter) for cells in table.rows)
    return [(row, column) for row, column in enumerate(columns) if column is not None]


def _joined_column(cells: Sequence[str], delimiter: str) -> int | None:
    """Find the first cell of a row to which a stray quotation mark joined later rows; None if there is none.

    Such a cell is recognised by its delimiters: the first line has as many as there are columns after the cell, the
    last line as many as there are columns before it, and most lines in between as many as a whole row. Empty lines are
    ignored, and cells that look like prose are skipped (see `_is_prose`).
    """
    last = len(cells) - 1
    for column, cell in enumerate(cells):
        if not last or ("\n" not in cell and "\r" not in cell):
            continue
        first, *others = _LINE_BREAK.split(cell)
        counts = [line.count(delimiter) for line in others if line.strip()]
        if not counts or (first.count(delimiter), counts[-1]) != (last - column, column):
            continue
        if 2 * counts[:-1].count(last) >= len(counts) - 1 and not _is_prose(cell, column, len(cells), delimiter):
            return column
    return None


def _is_prose(cell: str, column: int, columns: int, delimiter: str) -> bool:
    """Return whether the delimiters of a cell are punctuation: followed by a space, or decimal commas.

    One such delimiter is enough in short tables, where many texts have as many delimiters as rows. The first of more
    than three columns is never prose. In other columns, all delimiters must be punctuation.
    """
    mark = re.escape(delimiter)
    if column == 0:
        return columns <= _PROSE_COLUMNS and bool(re.search(rf"{mark}(?:\s|(?<=\d.)\d)", cell))
    punctuation = re.compile(rf"{mark}[ \xa0]|[ \xa0]\d+{mark}\d|\d{mark}\d+[ \xa0]")
    if columns <= _AMBIGUOUS_COLUMNS:
        return bool(punctuation.search(cell))
    return delimiter not in punctuation.sub("", cell)


def check_column_names(names: Sequence[str], where: object) -> None:
    """Check that column names are unique, ignoring surrounding spaces and unnamed columns.

    Raises:
        DataError: A name is repeated.
    """
    stripped = [name.strip() for name in names]
    repeated = sorted({name for name in stripped if name and stripped.count(name) > 1})
    if repeated:
        raise DataError(
            f"several columns have the same name: {shortlist(repeated)}", where=where, fix="rename all but one"
        )


class _RowEnds:
    """Line endings of the rows of a csv file."""

    def __init__(self) -> None:
        self.last = ""
        """Latest line."""
        self._cut: list[int] = []  # first lines of rows that end in a carriage return alone
        self._others = 0
        self._after_cut = False

    def watch(self, stream: Iterable[str]) -> Iterator[str]:
        """Yield the lines of a file that was opened with `newline=""`, and remember the latest one for `add`."""
        for self.last in stream:
            yield self.last

    def add(self, row: Sequence[str], line: int) -> None:
        """Add a row that starts on line `line` of the file and ends on the last line that was read."""
        if row and self.last.endswith("\r"):
            self._cut.append(line)
        elif row:
            self._others += self.last.endswith("\n")
        elif self._after_cut and self.last.endswith("\n"):  # the row ended in "\r\r\n", as Windows writes in text mode
            self._cut.pop()
            self._others += 1
        self._after_cut = bool(row) and self.last.endswith("\r")

    def check(self, path: Path) -> None:
        """Check that no row, or every row, ends in a carriage return alone.

        Raises:
            DataError: Only some rows end in a carriage return alone; the message names the line of the first one.
        """
        if self._cut and self._others:
            raise DataError(
                f"{counted(len(self._cut), 'row ends', 'rows end')} in a carriage return alone, "
                f"{self._others:,} in line feeds: a cell may be split in two",
                where=f"{path}, line {self._cut[0]}",
                fix="quote cells that contain carriage returns, or replace the carriage returns with spaces",
            )
