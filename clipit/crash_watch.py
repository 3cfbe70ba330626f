"""Add image names to Pillow's warnings, and report which images were being read when the process crashed.

A crash in a decoder, or the system's out-of-memory killer, ends the process without an exception. Reading threads
therefore note their current image in shared memory. A small watcher process waits until this process exits, and then
prints the notes that were not cleared.
"""

import logging
import mmap
import os
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, TextIO

logger = logging.getLogger(__name__)

_MAX_WARNINGS = 20  # maximum number of Pillow warnings to log; all images of a data set may cause the same one
_SLOTS, _BYTES = 128, 512
"""Number of notes, and bytes per note. If there are more threads than notes, several threads share a note."""
_WATCH = f"""
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
while os.read(0, 1):
    pass
notes = {{os.pread(int(sys.argv[1]), {_BYTES}, {_BYTES} * slot).rstrip(b"\\0") for slot in range({_SLOTS})}} - {{b""}}
if notes:
    shown = b", ".join(sorted(notes)[:16]).decode(errors="ignore").encode("unicode_escape").decode("ascii")
    print("error: the process was killed while it was reading these images\\n  where: " + shown +
          "\\n  fix: if you did not stop the command yourself, run it again; if it crashes at the same image again, "
          "replace that file; if memory ran out, read with fewer threads", file=sys.stderr)
"""


class _Watch:
    """Notes of this process, and the watcher process that waits for it to exit."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open until the process exits
        self._file.truncate(_SLOTS * _BYTES)
        self._notes = mmap.mmap(self._file.fileno(), _SLOTS * _BYTES)
        self._numbers, self._local = count(), threading.local()
        number = self._file.fileno()
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCH, str(number)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=(number,),
        )  # fmt: skip

    def note(self, text: str) -> None:
        """Note the image that this thread is reading; "" clears the note."""
        slot = getattr(self._local, "slot", None)
        if slot is None:
            slot = self._local.slot = next(self._numbers) % _SLOTS
        self._notes[_BYTES * slot : _BYTES * (slot + 1)] = text.encode(errors="replace")[:_BYTES].ljust(_BYTES, b"\0")

    @property
    def pipe(self) -> IO[bytes] | None:
        """Pipe to the watcher; it is closed when this process exits."""
        return self._watcher.stdin


_current = threading.local()
_enabled = False
_watch: _Watch | None = None
_lock = threading.Lock()


def watch_reading() -> None:
    """Enable crash reports that name the images being read; commands call this at start-up."""
    global _enabled
    _enabled = os.name == "posix"


@contextmanager
def noted(where: str) -> Iterator[None]:
    """Record which image this block reads, so that warnings and, in commands, crash reports can name it.

    Args:
        where: Path of the image file, or of the zip and its member.
    """
    watch = _get_watch() if _enabled else None
    before, _current.where = getattr(_current, "where", ""), where
    if watch is not None:
        watch.note(where)
    try:
        yield
    finally:
        _current.where = before
        if watch is not None:
            watch.note(before)


@contextmanager
def named_warnings() -> Iterator[None]:
    """Log each Pillow warning once per image, with the image's name; other warnings are shown as usual."""
    logged: set[tuple[str, str]] = set()

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> None:  # fmt: skip
        entry = (getattr(_current, "where", ""), " ".join(str(message).split()))
        if not entry[0] or Path(filename).parent.name != "PIL":
            before(message, category, filename, lineno, file, line)
        elif entry not in logged and len(logged) <= _MAX_WARNINGS:
            logged.add(entry)
            text = f"{entry[0]}: {entry[1]}"
            logger.warning(text if len(logged) <= _MAX_WARNINGS else "further warnings about images are not shown")

    with warnings.catch_warnings():
        before = warnings.showwarning
        warnings.filterwarnings("always", module=r"PIL\.", append=True)  # after the user's filters
        warnings.showwarning = show
        yield


def _get_watch() -> _Watch | None:
    """Return the watch, starting it at the first image; None if it cannot be started."""
    global _watch, _enabled
    if _watch is None:
        with _lock:
            if _watch is None and _enabled:
                try:
                    _watch = _Watch()
                except OSError:  # no memory, process or temporary folder is available: read without a watcher
                    _enabled = False
    return _watch


def _close_inherited_pipe() -> None:
    """Close the pipe in a forked child; otherwise, the watcher would not notice that the parent has exited."""
    global _watch, _lock
    if _watch is not None and _watch.pipe is not None:
        os.close(_watch.pipe.fileno())
    _watch, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited_pipe)
