"""Cells of tables and Hugging Face columns: text, missing values and micrometres per pixel."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from clipit.config.run import TilesConfig
from clipit.data_files import MISSING_VALUES, NO_CLASS, CsvTable, cell_text
from clipit.errors import DataError, shortlist

logger = logging.getLogger(__name__)


def read_cells(values: Iterable[Any], column: str, where: object, place: Callable[[int], str]) -> list[str]:
    """Convert the cells of a column to text (see `cell_text`).

    Args:
        values: Cells of any type, in the order of the rows.
        column: Name of the column, for error messages.
        where: File or data set, for error messages.
        place: Function from the number of a row to its name in error messages.

    Raises:
        DataError: A cell contains a list, a line break, or characters that are not valid Unicode.
    """
    texts: list[str] = []
    for row, value in enumerate(values):
        try:
            texts.append(cell_text(value))
        except ValueError as error:
            raise DataError(
                f"{place(row)} contains {error} in column {column}",
                where=where,
                fix="correct this cell; in csv files, a quotation mark that is never closed joins rows",
            ) from None
    return texts


def check_joined_rows(table: CsvTable, delimiter: str, where: object) -> None:
    """Refuse a cell that contains further rows, because a stray quotation mark is closed only in a later row.

    The first line of such a cell has the delimiters after its column, its last line those before its column, and each
    line in between those of a whole row.
    """
    for row, cells in enumerate(table.rows):
        for place, cell in enumerate(cells):
            if place < 2 or "\n" not in cell:  # texts with few delimiters per line are no evidence
                continue
            counts, last = [line.count(delimiter) for line in cell.split("\n")], len(cells) - 1
            if counts == [last - place, *[last] * (len(counts) - 2), place]:
                raise DataError(
                    f"record {row + 1} (line {table.lines[row]}) contains {len(counts) - 1} further rows in column "
                    f"{table.header[place].strip()}",
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
    """Replace -1 in a column of integers with "", and refuse texts that mark missing values.

    Labels that tiles.classes or tiles.class_map names are classes.

    Args:
        values: Labels or groups as text, "" where missing.
        kind: What the values are.
        config: Section `tiles`.
        where: File or data set, for error messages.
        place: Function from the number of a row to its name in error messages.

    Returns:
        The values, and notes on replaced ones.

    Raises:
        DataError: A text such as NA, nan, None or NULL, or labels of which it is unclear whether -1 is a class.
    """
    is_label = kind == "label"
    named = {*(config.classes or ()), *config.class_map} if is_label else set()
    counts = Counter(values)
    wrong = sorted(name for name in counts if name.casefold() in MISSING_VALUES and name not in named)
    if wrong and not (is_label and config.class_map):  # the map drops and counts the labels that it does not name
        rows = [place(row) for row, value in enumerate(values) if value in wrong]
        raise DataError(
            f"{len(rows)} tiles have the {kind} {shortlist([repr(name) for name in wrong])}, which marks a missing "
            f"value in many programs: {shortlist(rows, 3)}",
            where=where,
            fix="leave these cells empty if the tiles have no label, or name all classes in tiles.classes if it is one"
            if is_label
            else "leave these cells empty if the patient or slide is unknown, or rename the group",
        )
    others = set(counts) - {"", NO_CLASS}
    if NO_CLASS not in counts or NO_CLASS in named or not all(name.lstrip("-").isdecimal() for name in others):
        return list(values), ()
    if is_label and len(others) < 2 and not named:
        raise DataError(
            f"the labels are {shortlist([NO_CLASS, *sorted(others)])}: -1 may be a class or mark unlabelled tiles",
            where=where,
            fix=f"name the classes, e.g. tiles.classes: {[NO_CLASS, *sorted(others)]}, or correct the labels",
        )
    note = f"{counts[NO_CLASS]} tiles with the {kind} -1 count as {'unlabelled' if is_label else 'without a group'}"
    logger.warning(f"note: {note}")
    return ["" if value == NO_CLASS else value for value in values], (note,)


def parse_mpp(values: Sequence[str], where: object, place: Callable[[int], str]) -> list[float]:
    """Convert micrometres per pixel to numbers; nan where missing.

    Raises:
        DataError: A value is not a positive, finite number.
    """
    numbers: list[float] = []
    for row, value in enumerate(values):
        try:
            number = float(value) if value else float("nan")
        except ValueError:
            number = -1.0
        if number <= 0 or number == float("inf"):
            raise DataError(
                f"mpp is '{value}' in {place(row)}",
                where=where,
                fix="write micrometres per pixel as a positive number without a unit, or leave the cell empty",
            )
        numbers.append(number)
    return numbers
