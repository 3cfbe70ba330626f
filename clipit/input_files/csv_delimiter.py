"""Recognise csv files that are separated by semicolons, as Excel writes them where the comma is the decimal sign."""

import csv
from pathlib import Path


def has_semicolons(path: Path, encoding: str) -> bool:
    """Return whether semicolons separate the fields of a csv file with a header.

    They do if the header is one column when it is split at commas, and if most rows have as many fields as the header,
    two or more, when they are split at semicolons. `read_csv` then reports the other rows.

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
        width, fitting, rows = 0, 0, 0
        try:
            for row in filter(None, csv.reader(stream, delimiter=";", strict=True)):
                if width:
                    rows += 1
                    fitting += len(row) == width
                width = width or len(row)
        except csv.Error:  # the rows before the broken one suffice
            pass
    return width > 1 and (rows == 0 or fitting > rows / 2)
