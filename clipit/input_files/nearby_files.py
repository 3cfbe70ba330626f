"""Describe what exists near a missing file, for error messages."""

import difflib
import os
import re
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from clipit.errors import shortlist

_URL = re.compile(r"[A-Za-z][\w.+-]+:/")  # pathlib reduces // to /

SAVE_FIRST = "save its content to a file first, and pass the path of that file"
"""Fix for errors about a pipe, which can be read only once."""


def special_file(path: str | Path) -> str:
    """Return "a pipe", "a device" or "a socket" if a path is one; "" for files, folders and paths that do not exist."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - called for every path of a configuration
    except (OSError, ValueError):
        return ""
    return special_kind(mode)


def special_kind(mode: int) -> str:
    """Return "a pipe", "a device" or "a socket" for a mode returned by `os.stat`; "" for files and folders."""
    if stat.S_ISFIFO(mode):
        return "a pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else ""


def similar_names(path: str) -> str:
    """Describe what exists near a missing path: similar names or, if none exist, the content of the closest folder.

    For a folder that exists, describe its content. For files in `outputs/`, as in the shipped configurations, also
    name the command that writes them.
    """
    if _URL.match(path):
        return "this is a URL: download the file first"
    if os.name != "nt" and path[1:3] in (":\\", ":/"):
        return "this is a Windows path"
    if kind := special_file(path):
        return f"this is {kind}: {SAVE_FIRST}"
    missing = Path(path).expanduser()
    folder = next((parent for parent in (missing, *missing.parents) if parent.is_dir()), Path())
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return f"{folder} cannot be listed"
    visible = [name for name in names if not name.startswith(".")]
    if missing == folder:
        return _contents(folder, visible)
    name = missing.relative_to(folder).parts[0]

    def spelling(other: str) -> str:
        return unicodedata.normalize("NFC", other).casefold()

    similar = (
        [other for other in names if spelling(other) == spelling(name)]
        or [other for other in names if spelling(Path(other).stem) == spelling(Path(name).stem)]
        or difflib.get_close_matches(name, names, n=3)
        or visible
    )
    contents = _contents(folder, similar)
    written = _written_by_clipit(missing)
    return f"{contents}; {written}" if written else contents


def _contents(folder: Path, names: Sequence[str]) -> str:
    place = "this folder" if folder == Path() else folder
    return f"{place} contains {shortlist(names)}" if names else f"{place} is empty"


def _written_by_clipit(missing: Path) -> str:
    """Name the command that writes a file in `outputs/`; "" for other files, and if the file's folder exists."""
    if missing.parts[:1] != ("outputs",) or missing.parent.is_dir():
        return ""
    if missing.parts[1:3] == ("demo", "world"):
        return "clipit demo writes this file; clipit world --output outputs/demo/world writes only the demo's data"
    return "if clipit writes this file, first run the command at the top of the configuration (clipit init NAME)"
