"""Paths in configurations and on command lines, with `~` expanded."""

import argparse
import re
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator

_SCHEMES = re.compile(r"(?:clip|transformers):(?=~)")  # prefixes of names that may be followed by a folder
_MAX_NAME_LENGTH = 255  # bytes, on all common file systems
_Path = TypeVar("_Path", str, Path, str | None)


def expand_home(path: _Path) -> _Path:
    """Expand a leading `~` or `~user`; names that are not paths are returned unchanged.

    Raises:
        ValueError: The home folder is unknown, or the path is invalid.
    """
    text = "" if path is None else str(path)
    if "\0" in text:
        raise ValueError("a path cannot contain a null character")
    if any(len(part.encode("utf-8", "replace")) > _MAX_NAME_LENGTH for part in text.split("/")):
        raise ValueError(f"a file name cannot be longer than {_MAX_NAME_LENGTH} bytes")
    scheme = _SCHEMES.match(text)
    prefix = scheme[0] if scheme else ""
    local = text.removeprefix(prefix)
    if not local.startswith("~"):
        return path
    try:
        expanded = Path(local).expanduser()
    except RuntimeError:
        first = local.partition("/")[0]
        message = f"{first} cannot be expanded to a home folder; write the full path (./{first} for a file name)"
        raise ValueError(message) from None
    return expanded if isinstance(path, Path) else f"{prefix}{expanded}"


_Value = TypeVar("_Value")
LocalPath = Annotated[_Value, AfterValidator(expand_home)]
"""Type of keys that are paths, or names in place of paths."""


def option_path(text: str) -> Path:
    """Convert the value of an option to a path.

    Raises:
        argparse.ArgumentTypeError: `~` cannot be expanded.
    """
    try:
        return expand_home(Path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run_path(text: str) -> Path:
    """Convert the value of an option to the folder of a run; the folder of its classifier stands for it.

    Raises:
        argparse.ArgumentTypeError: `~` cannot be expanded.
    """
    path = option_path(text)
    within_run = (path / "clipit.json").is_file() and (path.parent / "config.yaml").is_file()
    return path.parent if within_run else path
