"""Log messages and progress bars, in the main process only."""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class _Console(logging.Handler):
    """Handler that prints messages to the current standard output; warnings are prefixed with their level."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        print(f"{prefix}{record.getMessage()}", flush=True)


def log_to_console() -> None:
    """Print log messages of the package; commands call it once at their start.

    Only the main process of Accelerate or torchrun prints. Characters that the output cannot encode are escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    package = logging.getLogger("clipit")
    if os.environ.get("RANK", "0") == "0" and not any(isinstance(h, _Console) for h in package.handlers):
        package.addHandler(_Console())
        package.setLevel(logging.INFO)


def flush_console() -> None:
    """Write out buffered output."""
    if sys.stdout is not None:  # None if the standard output is closed
        sys.stdout.flush()


def close_console() -> None:
    """Discard further output, because its reader has closed the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Advance(Protocol):
    """Callback that advances a progress bar by some units, with a short note such as a speed."""

    def __call__(self, units: int = 1, note: str = "") -> None:
        """Advance the bar."""


@contextmanager
def progress(title: str, total: int, *, shown: bool = True, done: int = 0) -> Iterator[Advance]:
    """Show a progress bar, on terminals only.

    Args:
        title: Title of the bar.
        total: Total number of units.
        shown: Whether this process shows the bar.
        done: Number of units done before a resume.
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
            bar.advance(task, units)
            if note:
                bar.update(task, note=note)

        yield advance
