"""Detect names of patients, slides, tiles or reports that a spreadsheet program has changed, or that mean "unknown"."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clipit.errors import DataError, counted, shortlist

if TYPE_CHECKING:
    import pyarrow as pa

_MANGLED = re.compile(r"-?\d([.,]\d+)?[eE]\+\d{2,3}|#{3,}")
_MONTH = "(Jan|Feb|Mar|Mär|Mrz|Apr|May|Mai|Jun|Jul|Aug|Sep|Oct|Okt|Nov|Dec|Dez)"
_DATE_NAME = re.compile(
    rf"\d{{1,2}}(-|\. ?){_MONTH}(-\d{{2,4}})?|{_MONTH}[- ]\d{{2}}|"
    r"\d{1,2}\.\d{1,2}\.\d{4}|\d{1,2}/\d{1,2}/\d{4}|"
    r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])|(1 day, )?\d{1,2}:\d{2}:\d{2}"
)
"""Names that look like a date or time as a spreadsheet program writes it."""
_UNKNOWN = frozenset({"unknown", "unk", "missing", "none", "not available"})
"""Lower-case words used as placeholders for an unknown patient."""
_DIGITS, _LETTERS = re.compile(r"\d+"), re.compile(r"[^\W\d_]+")
_NO_NUMBER = re.compile("0+|9{2,}")
"""Numbers used as placeholders for an unknown patient."""
_EXACT = {"halffloat": 2**11, "float": 2**24, "double": 2**53, "float16": 2**11, "float32": 2**24, "float64": 2**53}
"""Number up to which a floating-point type stores all whole numbers, keyed by the type's name in pyarrow or numpy."""


def check_mangled(values: Sequence[str | None], column: str, row_name: Callable[[int], str], where: object) -> None:
    """Check that a spreadsheet program has not replaced names of patients or slides.

    Such programs show 120000000001 as 1.20E+11, SEPT2 as 2-Sep, and values that do not fit into a cell as ###. Names
    that look like dates are accepted if more than half of all names look like dates.

    Raises:
        DataError: Some names look changed; the message lists the first ones with their rows.
    """
    named = [(row, value) for row, value in enumerate(values) if value]
    dates = [(row, value) for row, value in named if _DATE_NAME.fullmatch(value)]
    mangled = [(row, value) for row, value in named if _MANGLED.fullmatch(value)]
    mangled += dates if 2 * len(dates) <= len(named) else []
    _reject(mangled, column, row_name, where)


def check_labels(
    values: Sequence[str | None],
    column: str,
    row_name: Callable[[int], str],
    where: object,
    classes: Collection[str] = (),
) -> None:
    """Check that a spreadsheet program has not changed labels, such as 2-3 into a date.

    Args:
        classes: Names of classes, which are accepted.

    Raises:
        DataError: Some labels look changed; the message lists the first ones with their rows.
    """
    looks_changed = {
        value
        for value in {*values} - {*classes}
        if value and (_DATE_NAME.fullmatch(value) or _MANGLED.fullmatch(value))
    }
    _reject([(row, value) for row, value in enumerate(values) if value in looks_changed], column, row_name, where)


def check_rounded(values: Sequence[str | None], column: str, row_name: Callable[[int], str], where: object) -> None:
    """Check that a spreadsheet program has not rounded the names of tiles or annotators, or replaced them with ###.

    Such programs write the different numbers 120000000001 and 120000000002 as 1.2E+11. Names that look like dates are
    accepted.

    Raises:
        DataError: Some names look changed; the message lists the first ones with their rows.
    """
    mangled = [(row, value) for row, value in enumerate(values) if value and _MANGLED.fullmatch(value)]
    _reject(mangled, column, row_name, where)


def check_exact(values: Iterable[Any], type_name: str, column: str, where: object) -> None:
    """Check that names stored as floating-point numbers are exact: large numbers may have been rounded.

    Args:
        values: Numbers, or their text; None or "" where missing.
        type_name: Type of the numbers, as pyarrow or numpy name it; columns of other types are accepted.

    Raises:
        DataError: A number is so large that its type does not store every whole number of this size.
    """
    limit = _EXACT.get(type_name)
    if limit is None:
        return
    numbers = ((row, float(value)) for row, value in enumerate(values, 1) if value is not None and value != "")
    large = next(((row, number) for row, number in numbers if abs(number) >= limit), None)
    if large is not None:
        raise DataError(
            f"row {large[0]} contains {large[1]:.0f} in column {column}, but the column's type ({type_name}) stores "
            f"whole numbers exactly only up to {limit:,}: distinct values may have become identical",
            where=where,
            fix="write the column again as text or as integers, from data that have not been rounded",
        )


def _reject(mangled: Sequence[tuple[int, str]], column: str, row_name: Callable[[int], str], where: object) -> None:
    if mangled:
        listed = shortlist([f"{value!r} in {row_name(row)}" for row, value in sorted(mangled)], 3)
        raise DataError(
            f"a spreadsheet program has probably changed {counted(len(mangled), 'value')} in column {column}: {listed}",
            where=where,
            fix="in that program, format the column as text, enter the values again, and save the table",
        )


def placeholder_notes(counts: Mapping[str, int], row: str) -> tuple[str, ...]:
    """Warn about groups such as `unknown`, whose rows count as one patient.

    Args:
        counts: Number of rows of each group; "" for rows without a group.
        row: Noun for a row, such as tile.
    """
    names = [name for name in counts if name]
    largest = max(names, key=lambda name: counts[name], default="")
    is_unique = [counts[name] for name in names].count(counts[largest]) == 1 if names else False
    return tuple(
        f"WARNING: {counted(counts[name], row)} with the group {name!r} count as one patient or slide; leave these "
        "cells empty if the patient or slide is unknown"
        for name in sorted(names)
        if counts[name] > 1
        and (
            name.casefold() in _UNKNOWN
            or not any(map(str.isalnum, name))
            or (name == largest and is_unique and _is_unlike(name, [other for other in names if other != name]))
        )
    )


def _is_unlike(name: str, others: Sequence[str]) -> bool:
    """Return whether a name looks different from all others, like a word or number that means "unknown".

    Such a name starts with punctuation, is a number such as 0 or 999 that differs in length from all other numbers, or
    is a word among names with digits. Because random ids may look like words, a word counts only if its length differs
    from all others, or if all others have the same pattern.
    """
    if not name[0].isalnum():
        return all(other[0].isalnum() for other in others)
    if len(others) < 2:
        return False
    if name.isdecimal():
        lengths = {len(other) for other in others if other.isdecimal()}
        return _NO_NUMBER.fullmatch(name) is not None and len(name) not in lengths
    is_word = not _DIGITS.search(name) and all(map(_DIGITS.search, others))
    patterns = {_LETTERS.sub("a", _DIGITS.sub("0", other)) for other in others} if is_word else set()
    return is_word and (len(patterns) == 1 or len(name) not in map(len, others))


def check_exact_columns(batch: "pa.RecordBatch | pa.Table", where: object) -> None:
    """Check that numbers in floating-point columns, which may be ids, are exact; see `check_exact`."""
    for field in batch.schema:
        if str(field.type) in _EXACT:
            check_exact(batch.column(field.name).to_pylist(), str(field.type), field.name, where)
