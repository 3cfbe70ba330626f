"""Convert cells of tables and Hugging Face columns to text, resolve missing values, and parse resolutions."""

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from clipit.config.run import TilesConfig
from clipit.config.section import MAX_MPP, MIN_MPP
from clipit.errors import DataError, counted, shortlist
from clipit.input_files.data_files import NO_CLASS, NO_CLASSES, cell_text, is_whole, missing_markers, without_decimals
from clipit.input_files.mangled_names import check_labels, check_mangled, placeholder_notes

logger = logging.getLogger(__name__)

_DECIMAL_COMMA = re.compile(r"0?,\d+|\d+,(?!\d{3}$)\d+")
"""Number with a decimal comma; numbers such as 1,000 do not match, because they may mean a thousand."""
_INVALID = "\0"  # prefix of a stored error; no valid cell contains this character
_STORED_ERROR = re.compile(f"{_INVALID}(a|bytes|characters) ")  # first word of the messages of `cell_text`


def read_cells(values: Iterable[Any], column: str, where: object, row_name: Callable[[int], str]) -> list[str]:
    """Convert the cells of a column to text (see `cell_text`).

    Args:
        values: Cells of any type, in row order.
        row_name: Function that maps a row index to the row's name in error messages.

    Raises:
        DataError: A cell contains a list, a line break, a control character, or characters that are not valid Unicode.
    """
    return check_stored(map(stored_cell, values), column, where, row_name)


def text_cells(values: Iterable[Any]) -> list[str] | None:
    """Convert the cells of a column to text; None if a cell is not text (see `cell_text`), for columns to copy."""
    texts = list(map(stored_cell, values))
    return None if any(text.startswith(_INVALID) for text in texts) else texts


def stored_cell(value: Any) -> str:
    """Convert a cell to text, or an invalid cell to a null character followed by the reason.

    For sources that can be read only once, all columns are stored in this form, and invalid cells raise an error only
    when used. A cell that is already in this form is returned as it is.
    """
    if isinstance(value, str) and _STORED_ERROR.match(value):
        return value
    try:
        return cell_text(value)
    except ValueError as error:
        return f"{_INVALID}{error}"


def check_stored(texts: Iterable[str], column: str, where: object, row_name: Callable[[int], str]) -> list[str]:
    """Check that all cells stored by `stored_cell` are valid, and return them.

    Args:
        texts: Cells, in row order.
        row_name: Function that maps a row index to the row's name in error messages.

    Raises:
        DataError: A cell is invalid.
    """
    cells = list(texts)
    for row, text in enumerate(cells):
        if text.startswith(_INVALID):
            raise DataError(
                f"{row_name(row)} contains {text.removeprefix(_INVALID)} in column {column}",
                where=where,
                fix="correct the cell; in csv files, an unclosed quotation mark joins rows",
            )
    return cells


def resolve_missing(
    values: Sequence[str],
    kind: Literal["label", "group"],
    config: TilesConfig,
    where: object,
    row_name: Callable[[int], str],
) -> tuple[list[str], tuple[str, ...]]:
    """Replace -1 with "" in a column of integers; reject it in a column of names, and everywhere markers such as NA.

    Groups such as 12.0 are read as 12, since programs write integers in this way in columns with empty cells (see
    `without_decimals`). A label named in tiles.classes or tiles.class_map is always a class.

    Args:
        values: Labels or groups as text, "" where missing.
        config: Section `tiles`.
        row_name: Function that maps a row index to the row's name in error messages.

    Returns:
        Values, and notes on replaced values.

    Raises:
        DataError: A value is NA, nan, None, NULL or similar; -1 is in a column of names, or may be a class or mark
            missing labels; or a spreadsheet program has probably changed a value.
    """
    is_label = kind == "label"
    class_names = {*(config.classes or ()), *config.class_map} if is_label else set()
    if not is_label:
        check_mangled(values, config.columns.get("group", "group"), row_name, where)
    elif not config.class_map:
        check_labels(values, config.columns.get("label", "label"), row_name, where, class_names)
    counts = Counter(values)
    markers = sorted(missing_markers(counts) - class_names)
    if markers and not (is_label and config.class_map):  # the map drops and counts labels that it does not list
        rows = [row_name(row) for row, value in enumerate(values) if value in markers]
        raise DataError(
            f"{counted(len(rows), 'tile has', 'tiles have')} the {kind} {shortlist([repr(name) for name in markers])}, "
            "which marks a missing "
            f"value in many programs: {shortlist(rows, 3)}",
            where=where,
            fix="leave these cells empty if the tiles have no label; if this is a class, name all classes in "
            "tiles.classes"
            if is_label
            else "leave these cells empty if the patient or slide is unknown, or rename the group",
        )
    row = "slide" if config.source == "slides" else "tile"
    no_class = NO_CLASS if NO_CLASS in counts else min(NO_CLASSES - {NO_CLASS})
    others = set(counts) - {"", no_class}
    if no_class not in counts or no_class in class_names or not all(map(is_whole, others)):
        if is_label:
            return list(values), ()
        return [text or "" for text in without_decimals(values)], placeholder_notes(counts, row)
    if is_label and len(others) < 2 and not class_names:
        listed = [no_class, *sorted(others)]
        raise DataError(
            f"the labels are {shortlist(listed)}: {no_class} may be a class or mark unlabelled tiles",
            where=where,
            fix=f"name the classes, e.g. tiles.classes: {listed}, or correct the labels",
        )
    treatment = "unlabelled" if is_label else "having no group"
    note = f"{counted(counts[no_class], 'tile')} with the {kind} {no_class} treated as {treatment}"
    logger.warning(note)
    kept = ["" if value == no_class else value for value in values]
    if is_label:
        return kept, (note,)
    return [text or "" for text in without_decimals(kept)], (*placeholder_notes(Counter(kept), row), note)


def parse_mpp(values: Sequence[str], where: object, row_name: Callable[[int], str]) -> list[float]:
    """Parse micrometres per pixel as numbers; NaN where missing.

    Raises:
        DataError: A value is not a number from 0.01 to 100, the range of plausible resolutions.
    """
    numbers: list[float] = []
    for row, value in enumerate(values):
        try:
            text = value.replace(",", ".") if _DECIMAL_COMMA.fullmatch(value) else value
            number = float(text.replace("_", " ")) if text else float("nan")  # Python would read 0_5 as 5
        except ValueError:
            number = -1.0
        if not (math.isnan(number) or MIN_MPP <= number <= MAX_MPP):
            raise DataError(
                f"invalid mpp '{value}' in {row_name(row)}",
                where=where,
                fix="write the micrometres (not metres or nanometres) per pixel as a number without a unit, from "
                f"{MIN_MPP} to {MAX_MPP}, or leave the cell empty",
            )
        numbers.append(number)
    return numbers
