"""What a user sees while a command runs: log lines and progress bars, in the main process only."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class _Console(logging.Handler):
    """Prints messages as they are, to the standard output of the moment, with the level before warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        print(f"{prefix}{record.getMessage()}", flush=True)


def log_to_console() -> None:
    """Print what the package logs; call it once in a command, before any work.

    Processes that Accelerate or torchrun started beside the main one stay silent.
    """
    package = logging.getLogger("clipit")
    if os.environ.get("RANK", "0") == "0" and not any(isinstance(h, _Console) for h in package.handlers):
        package.addHandler(_Console())
        package.setLevel(logging.INFO)


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
