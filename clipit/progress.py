"""Log messages and progress bars, in the main process only."""

import io
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

logger = logging.getLogger(__name__)

LINE_SECONDS = 30.0
"""Seconds between progress lines if the output is not a terminal."""


class _Console(logging.Handler):
    """Handler that prints messages to the current standard output; warnings are prefixed with their level."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        print(f"{prefix}{record.getMessage()}", flush=True)


def log_to_console() -> None:
    """Print the package's log messages; commands call this once at start-up.

    Under Accelerate or torchrun, only the main process prints. Characters that the output cannot encode are escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    package = logging.getLogger("clipit")
    if os.environ.get("RANK", "0") == "0" and not any(isinstance(h, _Console) for h in package.handlers):
        package.addHandler(_Console())
        package.setLevel(logging.INFO)


def show_messages() -> None:
    """Print the package's log messages, unless the program has configured logging, which notebooks rarely do."""
    package = logging.getLogger("clipit")
    configured = package.level != logging.NOTSET or package.handlers or logging.getLogger().handlers
    if os.environ.get("RANK", "0") == "0" and not configured:
        package.addHandler(_Console())
        package.setLevel(logging.INFO)


def flush_console() -> None:
    """Write out buffered output."""
    if sys.stdout is not None:  # None if the standard output is closed
        sys.stdout.flush()


def close_console() -> None:
    """Discard further output, because its reader has closed the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@runtime_checkable
class Advance(Protocol):
    """Callback that advances a progress bar by some units, with a short note such as a speed."""

    def __call__(self, units: int = 1, note: str = "") -> None:
        """Advance the bar."""


@contextmanager
def progress(title: str, total: int, *, shown: bool = True, done: int = 0) -> Iterator[Advance]:
    """Show progress: a bar with a clock on terminals, a line every 30 seconds elsewhere.

    Both are also updated while a long unit runs, so that a slow unit can be distinguished from a hang.

    Args:
        shown: Whether this process shows anything.
        done: Number of units that were done before resuming.
    """
    if shown and 0 < done < total:
        logger.info(f"{title}: resuming at {done:,} of {total:,}")
    if not shown:
        yield lambda units=1, note="": None
    elif sys.stderr is not None and sys.stderr.isatty():
        with _bar(title, total, done) as advance:
            yield advance
    else:
        with _lines(title, total, done) as advance:
            yield advance


@contextmanager
def _bar(title: str, total: int, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        def advance(units: int = 1, note: str = "") -> None:
            bar.advance(task, units)
            if note:
                bar.update(task, note=note)

        yield advance


@contextmanager
def _lines(title: str, total: int, done: int) -> Iterator[Advance]:
    finished, last_note, calls = done, "", 0
    start = last_advance = time.monotonic()
    ended = threading.Event()

    def advance(units: int = 1, note: str = "") -> None:
        nonlocal finished, last_note, last_advance, calls
        finished, last_note, last_advance = finished + units, note or last_note, time.monotonic()
        calls += 1

    def report() -> None:
        while not ended.wait(LINE_SECONDS):
            seconds = time.monotonic() - start
            speed = (finished - done) / seconds
            left = (
                f"about {duration((total - finished) / speed)} left"
                if speed
                else f"none finished in {duration(seconds)}"
            )
            waiting = time.monotonic() - last_advance
            # Earlier units do not predict the time left if this one takes far longer.
            if speed and waiting > max(LINE_SECONDS, 2 * (last_advance - start) / calls):
                left = f"the next has taken {duration(waiting)} so far"
            count = f"{finished:,} of {total:,}"
            logger.info(f"{title}: {', '.join(part for part in (count, last_note, left) if part)}")

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield advance
    finally:
        ended.set()
        thread.join()


def duration(seconds: float) -> str:
    """Format a time: `40 seconds`, `12 minutes`, `3.5 hours`, `2 days`."""
    for limit, unit, name in ((90, 1, "seconds"), (5400, 60, "minutes"), (172_800, 3600, "hours")):
        if seconds < limit:
            value = seconds / unit
            text = f"{value:.1f}".removesuffix(".0") if name == "hours" and value < 10 else f"{value:.0f}"
            return f"{text} {name.removesuffix('s') if text == '1' else name}"
    return f"{seconds / 86_400:.0f} days"


class RunCounter:
    """Counter of the finished runs of a comparison or search, with an estimate of the time left."""

    def __init__(self, total: int) -> None:
        """Start the clock."""
        self.total, self.finished, self._seconds, self._timed = total, 0, 0.0, 0
        self._start = time.monotonic()

    def finish(self, *, kept: bool = False) -> str:
        """Count a finished run, timed since the previous one, and return `3 of 35, about 20 minutes left`.

        Args:
            kept: Whether an earlier command finished the run; its time is then ignored.
        """
        now = time.monotonic()
        if not kept:
            self._seconds, self._timed = self._seconds + now - self._start, self._timed + 1
        self.finished, self._start = self.finished + 1, now
        remaining = self.total - self.finished
        count = f"{self.finished} of {self.total}"
        if not remaining or not self._timed:
            return count
        return f"{count}, about {duration(remaining * self._seconds / self._timed)} left"
