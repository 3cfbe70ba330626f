"""Recognise Git LFS pointers: small text files that a clone without Git LFS contains in place of large files."""

from pathlib import Path

from clipit.errors import DataError

_FIRST_BYTES = b"version https://git-lfs.github.com/spec/"
_MAX_BYTES = 2**20  # a pointer is about 130 bytes long
PULL = "run git lfs pull in the repository"
"""Fix for errors about a pointer."""


def is_pointer(content: bytes) -> bool:
    """Return whether the first bytes of a file are those of a Git LFS pointer."""
    return content.startswith(_FIRST_BYTES)


def check_pointer(path: Path) -> None:
    """Check that a file is not a Git LFS pointer.

    Raises:
        DataError: The file is a pointer.
    """
    if _is_pointer_file(path):
        raise DataError("this file is a Git LFS pointer, not the data", where=path, fix=PULL)


def find_pointer(path: Path) -> Path | None:
    """Return the first Git LFS pointer in a folder, or the path itself if it is a pointer; None if there is none."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return next((file for file in files if _is_pointer_file(file)), None)


def _is_pointer_file(path: Path) -> bool:
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            return False
        with path.open("rb") as stream:
            return is_pointer(stream.read(len(_FIRST_BYTES)))
    except OSError:
        return False
