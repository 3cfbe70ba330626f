"""Recognise csv files that are separated by semicolons, as Excel writes them where the comma is the decimal sign."""

import csv
from pathlib import Path


def has_semicolons(path: Path, encoding: str) -> bool:
    """Return whether semicolons separate the fields of a csv file with a header.

    They do if the header is one column when it is split at commas, and if all rows have the same number of fields, two
    or more, when they are split at semicolons. Anything else is ambiguous and is left to the checks of `read_csv`.

    Raises:
        UnicodeError: The file is not in this encoding.
    """
    with path.open(encoding=encoding, newline="") as stream:
        try:
            header = next(csv.reader(stream), [])
        except csv.Error:
            return False
        if len(header) != 1 or ";" not in header[0] or header[0].strip().lower().startswith("sep="):
            return False
        stream.seek(0)
        try:
            widths = {len(row) for row in csv.reader(stream, delimiter=";", strict=True) if row}
        except csv.Error:
            return False
    return len(widths) == 1 and min(widths) > 1
