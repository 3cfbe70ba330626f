"""Recognise the delimiter of csv files; Excel writes semicolons where the decimal separator is a comma."""

import csv
from collections.abc import Sequence
from pathlib import Path

_DELIMITERS = {";": "';'", "\t": "tabs", ",": "','"}


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


def delimiter_hint(names: Sequence[str]) -> str:
    """Return a hint for a header that was read as one column because it uses another delimiter; "" otherwise.

    The hint also covers a first line such as `sep=;`, which Excel writes.
    """
    if names and names[0].strip().lower().startswith("sep="):
        hint = "the first line declares a delimiter: remove it"
        return hint if names[0].strip()[-1] in ";,=" else f"{hint}, and save the table with commas, or as .tsv"
    used = [word for mark, word in _DELIMITERS.items() if len(names) == 1 and mark in names[0]]
    return f"the header is one column that contains {used[0]}: save the table with commas, or as .tsv" if used else ""
