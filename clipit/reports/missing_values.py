"""Missing values in the organs, groups and labels of reports."""

from collections import Counter
from collections.abc import Sequence

from clipit.data_files import MISSING_VALUES, NO_CLASS
from clipit.errors import DataError, counted, shortlist


def resolve_missing(values: Sequence[str | None], key: str, where: str) -> tuple[list[str | None], str]:
    """Replace markers of missing values, such as NA, None, and -1 in a column of integers, with None.

    Args:
        values: Cells of a column, None where empty.
        where: Path of the reports, for the error message.

    Returns:
        The values, and a note that counts the replaced ones; "" if there are none.

    Raises:
        DataError: Whether -1 markers missing values is ambiguous, because the column has only one other integer.
    """
    counts = Counter(value for value in values if value is not None)
    markers = {value for value in counts if value in MISSING_VALUES}
    others = set(counts) - markers - {NO_CLASS}
    if NO_CLASS in counts and all(value.lstrip("-").isdecimal() for value in others):
        if len(others) == 1:
            raise DataError(
                f"the values are {shortlist([NO_CLASS, *others])}: -1 may be a value or mark missing ones",
                where=f"{where}, {key}",
                fix="write names in place of the numbers, or leave the cells of missing values empty",
            )
        markers.add(NO_CLASS)
    if not markers:
        return list(values), ""
    listed = shortlist([f"{marker}: {counts[marker]}" for marker in sorted(markers)])
    note = (
        f"{counted(sum(counts[marker] for marker in markers), 'report')} without a value in the column of {key} "
        f"({listed})"
    )
    return [None if value in markers else value for value in values], note
