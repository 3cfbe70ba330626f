"""Detect csv cells that a carriage return splits in two."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from clipit.errors import DataError, counted


class RowEnds:
    """Line endings of the rows of a csv file."""

    def __init__(self) -> None:
        self._last = ""
        self._cut: list[int] = []  # first lines of rows that end in a carriage return alone
        self._others = 0
        self._after_cut = False

    def watch(self, stream: Iterable[str]) -> Iterator[str]:
        """Yield the lines of a file that was opened with `newline=""`, and remember the latest one for `add`."""
        for self._last in stream:
            yield self._last

    def add(self, row: Sequence[str], line: int) -> None:
        """Add a row that starts on line `line` of the file and ends on the last line that was read."""
        if row and self._last.endswith("\r"):
            self._cut.append(line)
        elif row:
            self._others += self._last.endswith("\n")
        elif self._after_cut and self._last.endswith("\n"):  # the row ended in "\r\r\n", as Windows writes in text mode
            self._cut.pop()
            self._others += 1
        self._after_cut = bool(row) and self._last.endswith("\r")

    def check(self, path: Path) -> None:
        """Check that no row, or every row, ends in a carriage return alone.

        Raises:
            DataError: Only some rows end in a carriage return alone; the message names the line of the first one.
        """
        if self._cut and self._others:
            raise DataError(
                f"{counted(len(self._cut), 'row ends', 'rows end')} in a carriage return alone, "
                f"{self._others:,} in line feeds: a cell may be split in two",
                where=f"{path}, line {self._cut[0]}",
                fix="quote cells that contain carriage returns, or replace the carriage returns with spaces",
            )
