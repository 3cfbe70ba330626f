"""Cells of tables and Hugging Face columns: text, missing values and micrometres per pixel."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from clipit.config.run import TilesConfig
from clipit.data_files import MISSING_VALUES, NO_CLASS, CsvTable, cell_text, joined_rows, without_decimals
from clipit.errors import DataError, counted, shortlist

logger = logging.getLogger(__name__)

_SMALLEST_MPP, _LARGEST_MPP = 0.01, 100
_UNUSABLE = "\0"  # start of a stored cell that cannot be used; no usable cell contains this character


def read_cells(values: Iterable[Any], column: str, where: object, place: Callable[[int], str]) -> list[str]:
    """Convert the cells of a column to text (see `cell_text`).

    Args:
        values: Cells of any type, in the order of the rows.
        column: Name of the column, for error messages.
        where: File or data set, for error messages.
        place: Function from the number of a row to its name in error messages.

    Raises:
        DataError: A cell contains a list, a line break, a null character, or characters that are not valid Unicode.
    """
    return check_stored(map(stored_cell, values), column, where, place)


def stored_cell(value: Any) -> str:
    """Convert a cell to text; text that starts with a null character is the reason why the cell cannot be used.

    Sources that are read once store all columns in this form, so that a bad cell is an error only where it is used.
    """
    try:
        return cell_text(value)
    except ValueError as error:
        return f"{_UNUSABLE}{error}"


def check_stored(texts: Iterable[str], column: str, where: object, place: Callable[[int], str]) -> list[str]:
    """Check that all cells made by `stored_cell` can be used, and return them.

    Args:
        texts: Cells, in the order of the rows.
        column: Name of the column, for error messages.
        where: File or data set, for error messages.
        place: Function from the number of a row to its name in error messages.

    Raises:
        DataError: A cell cannot be used.
    """
    cells = list(texts)
    for row, text in enumerate(cells):
        if text.startswith(_UNUSABLE):
            raise DataError(
                f"{place(row)} contains {text.removeprefix(_UNUSABLE)} in column {column}",
                where=where,
                fix="correct this cell; in csv files, a quotation mark that is never closed joins rows",
            )
    return cells


def check_joined_rows(table: CsvTable, delimiter: str, where: object) -> None:
    """Reject a row that has swallowed others because of a stray quotation mark (see `joined_rows`)."""
    for row in joined_rows(table, delimiter, least=2):
        place = next(place for place, cell in enumerate(table.rows[row]) if place > 1 and "\n" in cell)
        raise DataError(
            f"record {row + 1} (line {table.lines[row]}) contains {table.rows[row][place].count(chr(10))} further rows "
            f"in column {table.header[place].strip()}",
            where=where,
            fix="remove the stray quotation marks, or double those that belong to the text",
        )


def resolve_missing(
    values: Sequence[str],
    kind: Literal["label", "group"],
    config: TilesConfig,
    where: object,
    place: Callable[[int], str],
) -> tuple[list[str], tuple[str, ...]]:
    """Replace -1 in a column of integers with "", and reject texts that mark missing values.

    Groups such as 12.0, as programs write integers beside empty cells, are read as 12 (see `without_decimals`). A label
    that tiles.classes or tiles.class_map names is always a class.

    Args:
        values: Labels or groups as text, "" where missing.
        kind: Whether the values are labels or groups.
        config: Section `tiles`.
        where: File or data set, for error messages.
        place: Function from the number of a row to its name in error messages.

    Returns:
        Values, and notes on replaced ones.

    Raises:
        DataError: A value is a text such as NA, nan, None or NULL, or it is unclear whether -1 is a class.
    """
    is_label = kind == "label"
    named = {*(config.classes or ()), *config.class_map} if is_label else set()
    counts = Counter(values)
    wrong = sorted(name for name in counts if name in MISSING_VALUES and name not in named)
    if wrong and not (is_label and config.class_map):  # the map drops and counts the labels that it does not name
        rows = [place(row) for row, value in enumerate(values) if value in wrong]
        raise DataError(
            f"{counted(len(rows), 'tile has', 'tiles have')} the {kind} {shortlist([repr(name) for name in wrong])}, "
            "which marks a missing "
            f"value in many programs: {shortlist(rows, 3)}",
            where=where,
            fix="leave these cells empty if the tiles have no label, or name all classes in tiles.classes if it is one"
            if is_label
            else "leave these cells empty if the patient or slide is unknown, or rename the group",
        )
    no_class = NO_CLASS if NO_CLASS in counts else f"{NO_CLASS}.0"  # as programs write it beside empty cells
    others = set(counts) - {"", no_class}
    whole = all(name.lstrip("-").removesuffix(".0").isdecimal() for name in others)
    if no_class not in counts or no_class in named or not whole:
        return list(values) if is_label else [text or "" for text in without_decimals(values)], ()
    if is_label and len(others) < 2 and not named:
        listed = [no_class, *sorted(others)]
        raise DataError(
            f"the labels are {shortlist(listed)}: {no_class} may be a class or mark unlabelled tiles",
            where=where,
            fix=f"name the classes, e.g. tiles.classes: {listed}, or correct the labels",
        )
    count = f"{counts[no_class]} tiles with the {kind} {no_class}"
    note = f"{count} count as {'unlabelled' if is_label else 'without a group'}"
    logger.warning(note)
    kept = ["" if value == no_class else value for value in values]
    return kept if is_label else [text or "" for text in without_decimals(kept)], (note,)


def parse_mpp(values: Sequence[str], where: object, place: Callable[[int], str]) -> list[float]:
    """Convert micrometres per pixel to numbers; NaN where missing.

    Raises:
        DataError: A value is not a number from 0.01 to 100; tissue is not scanned at other resolutions.
    """
    numbers: list[float] = []
    for row, value in enumerate(values):
        try:
            number = float(value.replace("_", " ")) if value else float("nan")  # Python would read 0_5 as 5
        except ValueError:
            number = -1.0
        if not (math.isnan(number) or _SMALLEST_MPP <= number <= _LARGEST_MPP):
            raise DataError(
                f"mpp is '{value}' in {place(row)}",
                where=where,
                fix="write micrometres (neither metres nor nanometres) per pixel as a number without a unit, from "
                f"{_SMALLEST_MPP} to {_LARGEST_MPP}, or leave the cell empty",
            )
        numbers.append(number)
    return numbers
