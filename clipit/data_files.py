"""Data files that users give: csv tables and Hugging Face data sets, read the same way for tiles and reports."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipit.errors import DataError, shortlist

_DELIMITERS = {";": "';'", "\t": "tabs", ",": "','"}
_LONGEST_FIELD = 2**31 - 1  # the csv module's default of 128 KiB is too short for some reports
_SAVED_BY_DATASETS = ("dataset_dict.json", "state.json")


@dataclass(frozen=True)
class CsvTable:
    """A csv file: its header, its rows, and the line of the file in which each row starts."""

    header: list[str]
    rows: list[list[str]]
    lines: list[int]


def read_csv(path: Path, delimiter: str = ",", encoding: str = "utf-8-sig") -> CsvTable:
    """Read a csv file with a header; quoted fields may contain line breaks, and empty lines are skipped.

    Raises:
        DataError: Broken quotes, a repeated column name, or a row of the wrong length.
        UnicodeError: The file is not in this encoding.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    rows: list[list[str]] = []
    lines: list[int] = []
    with path.open(encoding=encoding, newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            line = reader.line_num + 1
            for row in reader:
                if row:
                    rows.append(row)
                    lines.append(line)
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"broken row: {error}",
                where=f"{path}, line {reader.line_num}",
                fix="close the quotes, and double those within a quoted field",
            ) from error
    check_column_names(header, path)
    ragged = [index for index, row in enumerate(rows) if len(row) != len(header)]
    if ragged:
        first = ragged[0]
        raise DataError(
            f"record {first + 1} (line {lines[first]}) has {len(rows[first])} fields, the header {len(header)}"
            f" ({len(ragged)} such rows)",
            where=path,
            fix=delimiter_hint(header) or "quote fields that contain the delimiter or a line break",
        )
    return CsvTable(header, rows, lines)


def check_column_names(names: Sequence[str], where: object) -> None:
    """Check that column names are unique, ignoring surrounding spaces and unnamed columns.

    Raises:
        DataError: A name is repeated.
    """
    stripped = [name.strip() for name in names]
    repeated = sorted({name for name in stripped if name and stripped.count(name) > 1})
    if repeated:
        raise DataError(f"several columns have the same name: {shortlist(repeated)}", where=where, fix="rename one")


def delimiter_hint(names: Sequence[str]) -> str:
    """Return advice for a header that was read as one column because it uses another delimiter; "" otherwise."""
    used = [word for mark, word in _DELIMITERS.items() if len(names) == 1 and mark in names[0]]
    return f"the header is one column that holds {used[0]}: save the table with commas, or as .tsv" if used else ""


def is_saved_dataset(folder: Path) -> bool:
    """Return whether this folder was written by `save_to_disk` of the datasets package."""
    return any((folder / name).is_file() for name in _SAVED_BY_DATASETS)


def load_huggingface(path: str, key: str) -> Any:
    """Load a Hugging Face data set: an id on the hub, a local folder, or one written by `save_to_disk`.

    Args:
        path: Local folder or hub id.
        key: Configuration key with this path, for the error message.

    Returns:
        A `datasets.Dataset`, or a dictionary of them by split.

    Raises:
        DataError: The data set cannot be loaded.
    """
    import datasets

    folder = Path(path).expanduser()
    try:
        if is_saved_dataset(folder):
            return datasets.load_from_disk(str(folder))
        return datasets.load_dataset(str(folder) if folder.is_dir() else path)
    except Exception as error:  # its own errors, those of its dependencies and of the network
        raise DataError(
            f"cannot load this data set: {type(error).__name__}: {error}",
            where=path,
            fix=f"if it is a file or folder, correct {key}; if it is a Hugging Face id, check its spelling, the "
            "network and HF_HUB_OFFLINE, or give a local folder",
        ) from error
