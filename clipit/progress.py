"""Progress bars for whatever takes more than a few seconds; silent in all processes but the first."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Moves the bar: by how many units, and a short note such as a speed."""

    def __call__(self, units: int = 1, note: str = "") -> None:
        """Move the bar by so many units."""


@contextmanager
def progress(title: str, total: int, *, shown: bool = True, done: int = 0) -> Iterator[Advance]:
    """A bar on the terminal; on anything else, nothing.

    Args:
        title: What is being done.
        total: Units in all.
        shown: False in processes that do not print.
        done: Units done before (after a resume).
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal), transient=True) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        def advance(units: int = 1, note: str = "") -> None:
            """Move the bar by so many units."""
            bar.advance(task, units)
            if note:
                bar.update(task, note=note)

        yield advance
