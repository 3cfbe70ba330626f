"""Notes on columns of tile tables and data sets that are not read, although they contain splits."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from clipit.errors import DataError
from clipit.tiles.source import ALIASES

_SPLIT_NAME = re.compile("split|set|fold|part|phase|cohort|usage", re.IGNORECASE)
"""Words in the names of columns that may contain split names."""


def split_notes(names: Iterable[str], cells: Callable[[str], Iterable[Any]], advice: str) -> tuple[str, ...]:
    """Return a note if a column contains split names, for sources whose splits are not read from a column.

    Args:
        names: Names of the columns that are not read.
        cells: Function that returns the cells of a column.
        advice: What to do to use the column; `{name}` stands for its name.
    """
    for name in names:
        if _SPLIT_NAME.search(name):
            try:
                splits = {ALIASES.get(str(cell).strip().lower()) for cell in cells(name)}
            except DataError:  # a column that is not read may contain anything
                continue
            if len(splits) > 1 and None not in splits:
                return (f"column {name} contains splits but is not read; to use it, {advice.format(name=name)}",)
    return ()
