"""Temporary files that killed processes leave behind."""

import os
import re
from pathlib import Path

TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp", re.DOTALL)
"""Names of the temporary files of `artifacts.whole_file`, with the id of the process that writes them."""

_SAFETENSORS_TEMPORARY = re.compile(r"\.tmp[A-Za-z0-9]{6}")
"""Names of the temporary files of safetensors since version 0.8, which contain no process id."""


def is_temporary(path: Path) -> bool:
    """Return whether a file has the name of a temporary file (`.*.tmp`, or as written by safetensors)."""
    return bool(path.match(".*.tmp") or _SAFETENSORS_TEMPORARY.fullmatch(path.name))


def delete_leftovers(folder: Path, stem: str = "") -> None:
    """Delete the temporary files that killed processes left directly in a folder (see `artifacts.whole_file`).

    Files of processes that are still running on this machine are kept.

    Args:
        stem: Stem of the names of the files that were being written; "" for all files.
    """
    for path in folder.glob(".*.tmp"):
        match = TEMPORARY.fullmatch(path.name)
        if match and (not stem or path.name.startswith(f".{stem}.")) and not is_alive(int(match[1])):
            path.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Return whether a process with this id exists on this machine."""
    try:
        os.kill(process, 0)  # signal 0 tests for existence
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return True
