"""Errors for users, and how commands print them.

Every message states what is wrong, where (file, row, key), and what to do.
"""

import errno
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clipit.crash_watch import named_warnings, watch_reading
from clipit.progress import close_console, flush_console, log_to_console

_DISK = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG,
    errno.ELOOP, errno.ENOLCK, errno.EOPNOTSUPP, errno.ESTALE, errno.EIO,
)  # fmt: skip
"""Codes of failed writes: disk full, over quota or read-only; file too large; path taken by a file; name too long; a
link to itself; a file system without locks, a network file system that was remounted, or a damaged disk."""
_IN_THE_WAY = "delete or rename the file that is in the way, or "
_NO_LOCKS = "mount this file system with support for locks, or "
_REMEDIES = {
    os.strerror(errno.EFBIG): "raise the limit on file sizes (ulimit -f) or ",
    os.strerror(errno.EROFS): "",
    os.strerror(errno.EEXIST): _IN_THE_WAY,
    os.strerror(errno.ENOTDIR): _IN_THE_WAY,
    os.strerror(errno.ENAMETOOLONG): "shorten the name or ",
    os.strerror(errno.ELOOP): "delete the link that leads to itself, or ",
    os.strerror(errno.ENOLCK): _NO_LOCKS,
    os.strerror(errno.EOPNOTSUPP): _NO_LOCKS,
    os.strerror(errno.ESTALE): "",
    os.strerror(errno.EIO): "check the disk, or ",
}
"""First part of the fix, by the operating system's message; for other messages, free some space."""

TORCH_FIX = (
    "pip uninstall -y torch torchvision; "
    "pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu "
    "(with an NVIDIA GPU, the CUDA version of its driver instead of cpu, such as cu130; in a checkout: make -B env)"
)
"""Fix for builds of torch and torchvision that cannot be imported together."""

_LIMITS = (errno.EMFILE, errno.ENFILE, errno.EAGAIN)  # too many open files, or too many threads or processes
_LOST_PROCESS = (
    "Connection closed by peer", "Connection reset by peer", "Connection was likely closed", "Broken pipe",
    "remote process exited",
)  # fmt: skip
"""Parts of the messages of Gloo, NCCL and torch's store of processes for a process that has exited."""
_MAPPING = "failed to map segment"
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc", os.strerror(errno.ENOMEM), _MAPPING)
"""Parts of the out-of-memory messages of torch (GPU and CPU), Pillow, faiss, safetensors and the dynamic linker."""
_BROKEN_PIPE = 141  # exit status of programs killed by SIGPIPE


class ClipitError(Exception):
    """An error that the user can fix; commands print it without a traceback."""

    def __init__(self, what: str, *, where: object = None, fix: str = "") -> None:
        """Compose the message: what is wrong, where (file, row, key), and what to do."""
        super().__init__(explain(what, where=where, fix=fix))
        self.what, self.where, self.fix = what, where, fix


class ConfigError(ClipitError):
    """The configuration is invalid; all problems are listed at once."""


class DataError(ClipitError):
    """Tiles, labels, reports or prompts are missing, unreadable or contradictory."""


class ModelError(ClipitError):
    """A model cannot be loaded, or does not support a request."""


class DivergenceError(ModelError):
    """Training diverged."""


class ArtifactError(ClipitError):
    """A file or folder is incomplete, does not match its inputs, or cannot be written."""


class LaunchError(ClipitError):
    """The requested processes or devices are not available, or a process that was started has failed."""


def explain(what: str, *, where: object = None, fix: str = "") -> str:
    """Compose a message from its three parts: what is wrong, where, and what to do."""
    lines = [what]
    if where is not None:
        lines.append(f"  where: {where}")
    if fix:
        lines.append(f"  fix: {fix}")
    return printable("\n".join(lines), keep="\n")


def printable(text: str, keep: str = "") -> str:
    """Escape control characters, which ids and file names may contain, for a terminal.

    Args:
        keep: Characters that are not escaped.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode("ascii") for char in text
    )


def has_controls(text: str) -> bool:
    """Return whether a text contains a line break, a null character or another control character."""
    return not text.isprintable() and any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in text)


def shortlist(items: Sequence[object], max_items: int = 5) -> str:
    """Join the first few items for a message, and count the rest."""
    shown = ", ".join(printable(str(item)) for item in items[:max_items])
    return shown if len(items) <= max_items else f"{shown} and {len(items) - max_items} more"


def repeats(names: Sequence[str], place: Callable[[int], object]) -> list[str]:
    """List the names that occur more than once, each with its first two places, as in `a (line 2, line 5)`.

    Args:
        place: Function that returns the place of a name, given its position in the list.
    """
    places: dict[str, list[object]] = {name: [] for name, count in sorted(Counter(names).items()) if count > 1}
    for row, name in enumerate(names) if places else ():
        if name in places:
            places[name].append(place(row))
    return [f"{name} ({shortlist(each, 2)})" for name, each in places.items()]


def counted(number: int, one: str, several: str = "") -> str:
    """Return a number with its noun, and the verb if it is given: 1 file, 2,000 files; 1 file is, 2 files are.

    Args:
        one: Singular, such as "file" or "file is".
        several: Plural; "" for the singular with an s.
    """
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def as_note(text: str) -> str:
    """Prefix a remark with `note:`, unless it starts with WARNING."""
    return text if text.startswith("WARNING") else f"note: {text}"


def counted_of(number: int, total: int, one: str, several: str) -> str:
    """Format a number out of a total, such as "1 of 3 files is missing"; the last word is the verb.

    Args:
        number: Number of things, which the verb agrees with.
        total: Number of all things, which the noun agrees with.
        one: Singular, such as "file is".
        several: Plural, such as "files are".
    """
    noun = (one if total == 1 else several).rpartition(" ")[0]
    verb = (one if number == 1 else several).rpartition(" ")[2]
    return f"{number:,} of {total:,} {noun} {verb}"


@contextmanager
def disk_errors(where: object) -> Iterator[None]:
    """Turn a full disk or a missing permission into an `ArtifactError` that names the path."""
    try:
        yield
    except PermissionError as error:
        raise ArtifactError(
            f"no permission to access this path ({error.strerror or error})",
            where=error.filename or where,
            fix="make the file readable"
            if _unreadable(error.filename)
            else "choose a different folder with --output or --out, or change the folder's permissions",
        ) from error
    except ClipitError:
        raise
    except IsADirectoryError as error:  # for a rename, filename2 is the target
        raise ArtifactError(
            "cannot write this file: there is a folder with the same name",
            where=error.filename2 or error.filename or where,
            fix="delete or rename that folder, then run the command again; finished parts are kept",
        ) from error
    except Exception as error:
        reason = _write_failure(error)
        if reason is None:
            raise
        raise ArtifactError(
            f"cannot write: {reason}",
            where=getattr(error, "filename", None) or where,
            fix=f"{_REMEDIES.get(reason, 'free some space or ')}choose a different folder with --output or --out, "
            "then run the command again; finished parts are kept",
        ) from error


def _unreadable(filename: object) -> bool:
    """Return whether a file exists, but its permissions do not allow reading it."""
    try:
        return isinstance(filename, str) and Path(filename).is_file() and not os.access(filename, os.R_OK)
    except PermissionError:  # the folder's permissions do not allow reading it either
        return False


def _write_failure(error: Exception) -> str | None:
    """Return the operating system's message for a failed write; None for other errors."""
    if isinstance(error, OSError) and error.errno in _DISK:
        return os.strerror(error.errno)
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        if os.strerror(code) in str(error):  # safetensors and faiss quote the message instead of raising an OSError
            return os.strerror(code)
    if isinstance(error, OSError) and error.errno is None and " written" in str(error):  # numpy: n requested, m written
        return f"{os.strerror(errno.ENOSPC)}, over quota or over the limit on file sizes ({error})"
    return None


def is_limit(error: BaseException) -> bool:
    """Return whether an error comes from a limit of the machine (memory, threads, open files), not from its input."""
    return is_out_of_memory(error) or getattr(error, "errno", None) in _LIMITS


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, from any library, means that the machine or its GPU is out of memory."""
    return (
        isinstance(error, MemoryError)
        or getattr(error, "errno", None) == errno.ENOMEM
        or any(text in str(error) for text in _OUT_OF_MEMORY)
    )


def out_of_memory(error: BaseException) -> ClipitError:
    """Compose the error for running out of memory."""
    reason = " ".join(str(error).split())[:300]
    return ClipitError(
        f"not enough memory{f': {reason}' if reason else ''}",
        fix="use a machine or GPU with more memory, or smaller batches: vlm.batch_size, training.tiles_per_step, "
        "evaluation.batch_size, pairing.block (clipit predict: --batch-size)"
        # the dynamic linker says the same in both cases
        + ("; or move the library from a file system mounted with noexec" if _MAPPING in reason else ""),
    )


@contextmanager
def _limit_errors() -> Iterator[None]:
    """Turn errors caused by machine limits, lost processes and mismatched torch builds into a `ClipitError`."""
    try:
        yield
    except (RuntimeError, OSError, MemoryError, ImportError) as error:
        number = getattr(error, "errno", None)
        if is_out_of_memory(error):
            raise out_of_memory(error) from error
        if isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST_PROCESS):
            raise ClipitError(
                "another process of this command has exited", fix="see the message of the process that failed first"
            ) from error
        if number in (errno.EMFILE, errno.ENFILE):
            raise ClipitError(f"cannot open more files: {error}", fix="raise the limit: ulimit -n 65536") from error
        if number == errno.EAGAIN or "can't start new thread" in str(error):
            raise ClipitError(
                f"cannot start more threads or processes: {error}",
                fix="raise the limit (ulimit -u, or the memory and process limits of the job), or lower "
                "training.threads and OMP_NUM_THREADS",
            ) from error
        causes = (error, error.__cause__, error.__context__)  # transformers wraps the error in an ImportError
        if any("torchvision::nms does not exist" in str(cause) for cause in causes):
            raise ClipitError(
                "the installed torch and torchvision do not match: one is a CUDA build, the other a CPU build",
                fix=TORCH_FIX,
            ) from error
        raise


@contextmanager
def machine_errors() -> Iterator[None]:
    """Turn a full disk, insufficient memory and other machine limits into a `ClipitError`."""
    with disk_errors("the output folder"), _limit_errors():
        yield


@contextmanager
def user_errors() -> Iterator[None]:
    """Run a command: print log messages, and turn a `ClipitError` into its message and exit status 2."""
    log_to_console()
    watch_reading()
    try:
        with machine_errors(), named_warnings():
            try:
                yield
            except SystemExit:
                flush_console()
                raise
            flush_console()  # flush now, because errors while Python exits cannot be handled
    except BrokenPipeError:  # the program that reads the output, such as `head`, has exited
        close_console()
        raise SystemExit(_BROKEN_PIPE) from None
    except ClipitError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        raise SystemExit(130) from None
