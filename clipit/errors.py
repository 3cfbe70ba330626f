"""Errors that are shown to a user, and how a script shows them.

Every message says what was wrong, where (file, row, key) and what to do next.
"""

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clipit.progress import log_to_console

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG)
"""Full, over quota, read-only; a file stands where a folder should be; or too long a name."""


class ClipitError(Exception):
    """Something a user can put right; scripts print it without a traceback."""

    def __init__(self, what: str, *, where: object = None, fix: str = "") -> None:
        """Compose the message: what is wrong, where (file, row, key), and what to do."""
        super().__init__(explain(what, where=where, fix=fix))


class ConfigError(ClipitError):
    """The configuration is wrong; all that was found is listed at once."""


class DataError(ClipitError):
    """Tiles, labels, reports or prompts are missing, unreadable or contradictory."""


class ModelError(ClipitError):
    """A model cannot be loaded, or does not do what was asked of it."""


class ArtifactError(ClipitError):
    """Something on disk is incomplete, does not belong here or cannot be written."""


class LaunchError(ClipitError):
    """The processes that were asked for are not the processes that run."""


def explain(what: str, *, where: object = None, fix: str = "") -> str:
    """Compose a message from its three parts: what, where, and what to do next."""
    lines = [what]
    if where is not None:
        lines.append(f"  where: {where}")
    if fix:
        lines.append(f"  to do: {fix}")
    return printable("\n".join(lines), keep="\n")


def printable(text: str, keep: str = "") -> str:
    """The text with escapes for all that a terminal would obey instead of show; ids and file names may hold such.

    Args:
        text: Anything.
        keep: Signs that stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() or sign in keep else sign.encode("unicode_escape").decode("ascii") for sign in text
    )


def shortlist(items: Sequence[object], most: int = 5) -> str:
    """Join the first few items for a message, and say how many are left out."""
    shown = ", ".join(printable(str(item)) for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


@contextmanager
def disk_errors(where: object) -> Iterator[None]:
    """Turn a full disk or a missing permission into an `ArtifactError` that names the place."""
    try:
        yield
    except PermissionError as error:
        raise ArtifactError(
            f"no permission: {error.strerror or error}",
            where=error.filename or where,
            fix="make the file readable"
            if _unreadable(error.filename)
            else "choose another place with --output, or change the folder's permissions",
        ) from error
    except ClipitError:
        raise
    except Exception as error:
        reason = _why_not_written(error)
        if reason is None:
            raise
        raise ArtifactError(
            f"cannot write: {reason}",
            where=getattr(error, "filename", None) or where,
            fix="free some space or choose another place with --output; "
            "start again afterwards: finished parts are kept",
        ) from error


def _unreadable(filename: object) -> bool:
    """Whether a file is there and may not be read: an input, whatever was done with it."""
    return isinstance(filename, str) and Path(filename).is_file() and not os.access(filename, os.R_OK)


def _why_not_written(error: Exception) -> str | None:
    """What the disk had against it; None when the disk was not the trouble."""
    if isinstance(error, OSError) and error.errno in _DISK:
        return os.strerror(error.errno)
    if os.strerror(errno.ENOSPC) in str(error):  # safetensors and faiss have exceptions of their own
        return os.strerror(errno.ENOSPC)
    if isinstance(error, OSError) and error.errno is None and " written" in str(error):  # numpy: n requested, m written
        return f"{os.strerror(errno.ENOSPC)} ({error})"
    return None


@contextmanager
def user_errors() -> Iterator[None]:
    """Wrap a command: print what is logged; a `ClipitError` ends it with the message alone and exit status 2."""
    log_to_console()
    try:
        with disk_errors("the output folder"):
            yield
    except ClipitError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; start the same command again to go on", file=sys.stderr)
        raise SystemExit(130) from None
