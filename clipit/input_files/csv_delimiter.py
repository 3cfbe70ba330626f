"""Detect the delimiter and the header of csv files; in some countries, Excel writes semicolons."""

import csv
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from clipit.errors import shortlist

_DELIMITERS = {";": "';'", "\t": "tabs", ",": "','", "|": "'|'"}
_SAVE = "save the table as comma-separated .csv, or as .tsv"
_COMPARED = 1000  # number of rows that are compared with the first one
_MAX_TITLE = 20  # number of rows after the first one that are searched for the header
_MAX_NAME = 40  # maximum length of a column name
_QUOTED = re.compile(r'"[^"]*"([;\t |])"')
_PHRASE = re.compile(r"[\s\d:]")
"""Characters that are frequent in titles, but rare in column names."""
_NUMBER = re.compile(r"[-+]?[.,]*\d[\d.,]*%?")
_VALUE = re.compile(rf"{_NUMBER.pattern}|.*\.\w{{2,4}}|.*[.!?]|", re.DOTALL)
"""Cells that are not column names: numbers, file names, sentences and empty cells."""


def has_semicolons(path: Path, encoding: str) -> bool:
    """Return whether semicolons separate the fields of a csv file with a header.

    They do if the header has one column when split at commas, but two or more when split at semicolons, and most rows
    with a value then have as many fields as the header. `read_csv` reports the other rows.

    Raises:
        UnicodeError: The file is not in this encoding.
    """
    with path.open(encoding=encoding, newline="") as stream:
        try:
            header = next(filter(any, csv.reader(stream)), [])
        except csv.Error:
            return False
        if len(header) != 1 or ";" not in header[0] or header[0].strip().lower().startswith("sep="):
            return False
        stream.seek(0)
        width, fitting, rows = 0, 0, 0
        try:
            for row in filter(any, csv.reader(stream, delimiter=";", strict=True)):
                if width:
                    rows += 1
                    fitting += len(row) == width
                width = width or len(row)
        except csv.Error:  # the rows before the broken one suffice
            pass
    return width > 1 and (rows == 0 or fitting > rows / 2)


def layout_hint(
    header: Sequence[str],
    rows: Sequence[Sequence[str]] = (),
    lines: Sequence[int] = (),
    *,
    wanted: Collection[str] = (),
    delimiter: str = ",",
    unit: str = "line",
) -> str:
    """Return advice if the first row is not the header, or has a different delimiter; "" otherwise.

    The first row may be a title, a comment, or a line such as `sep=;`, which Excel writes.

    Args:
        header: Cells of the first row.
        rows: The other rows.
        lines: Line on which each of the other rows starts.
        wanted: Names of columns that the first row lacks.
        delimiter: Delimiter at which the rows were split.
        unit: Word for a row in messages: line (csv files) or row (sheets).
    """
    if header and header[0].strip().lower().startswith("sep="):
        hint = "the first line declares a delimiter: remove this line"
        return hint if header[0].strip()[-1] in ";,=" else f"{hint}, and {_SAVE}"
    rows = rows[:_COMPARED]
    if found := _find_header(header, rows, wanted, delimiter):
        return f"if {unit} {lines[found[0]]} ({shortlist(found[1])}) is the header, delete the {unit}s above it"
    if word := _other_delimiter(header, rows, wanted, delimiter) or _between_names(header, wanted):
        return f"the header was read as one column that contains {word}: {_SAVE}"
    return ""


def ragged_hint(header: Sequence[str], rows: Sequence[Sequence[str]], lines: Sequence[int], delimiter: str) -> str:
    """Return advice for rows that are longer or shorter than the header."""
    hint = layout_hint(header, rows, lines, delimiter=delimiter)
    if not hint and (word := _other_delimiter(header, rows, " ".join(header).split(), delimiter)):
        hint = f"the header was read as one column that contains {word}: {_SAVE}"
    extra = [len(row) - len(header) for row in rows]
    is_text = any(cell.startswith(" ") for row in rows for cell in row)  # probably with unquoted commas
    if not (hint or is_text or 0 in extra) and _mostly_true(number == 1 for number in extra):
        hint = (
            "if R wrote row names into the first column, write the table with row.names = FALSE, or name the first "
            "column in the header"
        )
    counts = {mark: delimiter.join(header).count(mark) for mark in _DELIMITERS if mark != delimiter}
    for mark, count in counts.items():
        if not hint and count and _mostly_true(delimiter.join(row).count(mark) == count for row in rows):
            hint = f"the columns seem to be separated by {_DELIMITERS[mark]}: {_SAVE}"
    quote = "quote fields that contain the delimiter or a line break"
    return f"{hint}; otherwise {quote}" if hint.startswith("if ") else hint or quote


def quoted_hint(line: str) -> str:
    """Return advice for a first line with quoted names and another delimiter, which the csv module rejects."""
    match = _QUOTED.match(line)
    return f"the column names are separated by {_DELIMITERS.get(match[1], 'spaces')}: {_SAVE}" if match else ""


def _find_header(
    header: Sequence[str], rows: Sequence[Sequence[str]], wanted: Collection[str], delimiter: str
) -> tuple[int, Sequence[str]] | None:
    """Find the header below a title or comment; return the index and cells of its row, or None if there is none.

    The header is a row with all wanted names or, if the table's first row is shorter than most rows, the first row that
    is as long as most rows.
    """
    for index, row in enumerate(rows[:_MAX_TITLE]):
        if wanted and {*wanted} <= {cell.strip() for cell in row}:
            return index, row
    for mark in dict.fromkeys([delimiter, *_DELIMITERS]):
        first, *others = (
            _without_empty(row if mark == delimiter else delimiter.join(row).split(mark)) for row in (header, *rows)
        )
        width, count = Counter(map(len, others)).most_common(1)[0] if others else (0, 0)
        if not 0 < len(first) < width or count <= len(others) / 2:
            continue
        index = next(index for index, row in enumerate(others) if len(row) >= width)
        below = others[index + 1 :]
        if index < _MAX_TITLE and _are_names(others[index]) and (_is_title(first) or _has_number(others[index], below)):
            return index, others[index]
    return None


def _is_title(cells: Sequence[str]) -> bool:
    return cells[0].lstrip().startswith("#") or (
        bool(_PHRASE.search(cells[0].strip())) if len(cells) == 1 else not _are_names(cells)
    )


def _are_names(cells: Sequence[str]) -> bool:
    """Return whether cells may be column names: short and unique, and neither numbers nor file names nor sentences."""
    return len({*cells}) == len(cells) and all(
        len(cell) <= _MAX_NAME and not cell[:1].isspace() and not _VALUE.fullmatch(cell.strip()) for cell in cells
    )


def _has_number(names: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Return whether the rows contain only numbers in at least one of the named columns."""
    columns = ([row[column].strip() for row in rows if column < len(row)] for column in range(len(names)))
    return any(column and all(map(_NUMBER.fullmatch, column)) for column in columns)


def _other_delimiter(
    header: Sequence[str], rows: Sequence[Sequence[str]], wanted: Collection[str], delimiter: str
) -> str:
    """Name the delimiter of a header that was read as one column; "" if there may really be only one column.

    Spaces are delimiters if they align the columns, if all rows have as many words as the header, or if the header
    contains a wanted name and all rows start with different words that contain a digit.
    """
    cells = _without_empty(header)
    if len(cells) != 1:
        return ""
    for mark, word in _DELIMITERS.items():
        if mark in cells[0]:
            return word
    names, words = cells[0].split(), [delimiter.join(row).split() for row in rows]
    if len(names) < 2:
        return ""
    numbered = {each[0] for each in words if len(each) >= len(names) and any(map(str.isdigit, each[0]))}
    is_split = (
        "  " in cells[0].strip()
        or (bool(words) and all(len(each) == len(names) for each in words))
        or (bool(words) and len(numbered) == len(words) and not {*wanted}.isdisjoint(names))
    )
    return "spaces" if is_split else ""


def _between_names(header: Sequence[str], wanted: Collection[str]) -> str:
    """Name the character that separates several wanted names in a header of one column; "" if there is none."""
    cells = _without_empty(header)
    if len(cells) != 1 or len(wanted) < 2:
        return ""
    return next((word for mark, word in ((None, "spaces"), (":", "':'")) if {*wanted} <= {*cells[0].split(mark)}), "")


def _without_empty(cells: Sequence[str]) -> list[str]:
    """Drop the empty cells that spreadsheet programs append to short rows."""
    length = max((index for index, cell in enumerate(cells, 1) if cell.strip()), default=0)
    return list(cells[:length])


def _mostly_true(conditions: Iterable[bool]) -> bool:
    values = list(conditions)
    return sum(values) > len(values) / 2
