"""Paths in configurations and on command lines: `~` is expanded here, once."""

import argparse
import re
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator

_SCHEMES = re.compile(r"(?:clip|transformers):(?=~)")  # names that may hold a folder behind a prefix
_LONGEST_NAME = 255  # bytes, on all common file systems
_Path = TypeVar("_Path", str, Path, str | None)


def expand_home(path: _Path) -> _Path:
    """Expand a leading `~` or `~user`; a name that is not a path is returned unchanged.

    Raises:
        ValueError: There is no such home folder, or no file can have this path.
    """
    text = "" if path is None else str(path)
    if "\0" in text:
        raise ValueError("a path cannot contain a null character")
    if any(len(part.encode("utf-8", "replace")) > _LONGEST_NAME for part in text.split("/")):
        raise ValueError(f"a file name cannot be longer than {_LONGEST_NAME} bytes")
    scheme = _SCHEMES.match(text)
    prefix = scheme[0] if scheme else ""
    local = text.removeprefix(prefix)
    if not local.startswith("~"):
        return path
    try:
        expanded = Path(local).expanduser()
    except RuntimeError:
        home = local.partition("/")[0]
        message = f"{home} cannot be expanded to a home folder; write the whole path (./{home} for a name)"
        raise ValueError(message) from None
    return expanded if isinstance(path, Path) else f"{prefix}{expanded}"


_Value = TypeVar("_Value")
LocalPath = Annotated[_Value, AfterValidator(expand_home)]
"""Type of a key that is a path, or a name in place of one."""


def option_path(text: str) -> Path:
    """Convert the value of a command's option to a path.

    Raises:
        argparse.ArgumentTypeError: `~` cannot be expanded.
    """
    try:
        return expand_home(Path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
