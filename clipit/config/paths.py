"""Paths in configurations and on command lines, with `~` and environment variables expanded."""

import argparse
import os
import re
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator

from clipit.errors import ConfigError
from clipit.input_files.nearby_files import SAVE_FIRST, special_file

_SCHEMES = re.compile(r"(?:clip|transformers):(?=~)")  # prefixes of names that may be followed by a folder
_ONLY_PREFIX = re.compile(r"(?:clip|hf|hf-hub|open_clip|python|transformers):\s*")
_VARIABLE = re.compile(r"\$(?:(?P<plain>[A-Za-z_]\w*)|\{(?P<braced>[A-Za-z_]\w*)\})")
_UNKNOWN_VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\{[^{}]+\})")
_NOT_IN_FILE_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_NAME_LENGTH = 255  # bytes, on all common file systems
_Path = TypeVar("_Path", str, Path, str | None)
_Named = TypeVar("_Named", str, Path)


def expand_home(path: _Path, *, read_once: bool = False) -> _Path:
    """Expand a leading `~` or `~user`, and `$NAME` or `${NAME}` of environment variables that are set and not empty.

    Names that are not paths are returned unchanged. Pipes, devices and sockets are rejected before they are opened:
    files are opened several times, to check their first bytes and to read them, but a pipe can be read only once.

    Args:
        read_once: Whether the file is read only once, so that a pipe is allowed.

    Raises:
        ValueError: The home folder is unknown, a part of the path is a variable that is not set, the path is invalid,
            or it is a pipe, a device or a socket.
    """
    text = "" if path is None else str(path)
    if _ONLY_PREFIX.fullmatch(text):
        raise ValueError(f"no name or path follows {text.strip()!r}")
    if "\0" in text:
        raise ValueError("a path cannot contain a null character")
    try:
        text.encode("utf-8", "surrogateescape")  # undecodable bytes of file names are allowed
    except UnicodeEncodeError as error:
        raise ValueError(f"a path cannot contain the character {text[error.start]!r}") from None
    if any(len(part.encode("utf-8", "replace")) > _MAX_NAME_LENGTH for part in text.split("/")):
        raise ValueError(f"a file name cannot be longer than {_MAX_NAME_LENGTH} bytes")
    if "$" in text and (expanded_text := _expand_variables(text)) != text:
        text = expanded_text
        path = Path(text) if isinstance(path, Path) else text
    scheme = _SCHEMES.match(text)
    prefix = scheme[0] if scheme else ""
    local = text.removeprefix(prefix)
    if not local.startswith("~"):
        if not read_once:
            _check_kind(local)
        return path
    try:
        expanded = Path(local).expanduser()
    except RuntimeError:
        first = local.partition("/")[0]
        message = f"{first} cannot be expanded to a home folder; write the full path (or ./{first} for a file name)"
        raise ValueError(message) from None
    if not read_once:
        _check_kind(expanded)
    return expanded if isinstance(path, Path) else f"{prefix}{expanded}"


def _expand_variables(text: str) -> str:
    """Expand environment variables; a part of the path that looks like an unknown variable must exist as a file."""
    expanded = _VARIABLE.sub(lambda match: os.environ.get(match["plain"] or match["braced"]) or match[0], text)
    parts = expanded.split("/")
    for number, part in enumerate(parts):
        if _UNKNOWN_VARIABLE.fullmatch(part) and not Path("/".join(parts[: number + 1])).exists():
            kind = "is not set" if _VARIABLE.fullmatch(part) else "has an unsupported form"
            raise ValueError(f"the environment variable {part} {kind}; write the full path, or ~ for your home folder")
    return expanded


def _check_kind(path: str | Path) -> None:
    if path and (kind := special_file(path)):
        raise ValueError(f"{path} is {kind}, not a file; {SAVE_FIRST}")


_Value = TypeVar("_Value")
LocalPath = Annotated[_Value, AfterValidator(lambda path: expand_home(path))]
"""Type of keys whose values are paths, or names instead of paths."""


def _named(path: _Named) -> _Named:
    """Replace a path without a name, such as `.`, by the absolute path: runs and slides are named after folders."""
    return type(path)(Path(path).resolve()) if Path(path).name in ("", "..") else path


def argument_path(path: _Named) -> _Named:
    """Expand an argument of a Python function that is a path or, as a string, may also be a name; see `expand_home`.

    Raises:
        ConfigError: The path is rejected.
    """
    try:
        return _named(expand_home(path))
    except ValueError as error:
        raise ConfigError(str(error), where=path, fix="correct the path") from None


def output_path(path: Path) -> Path:
    """Convert the argument `out` of a Python function to a path; pyarrow writes only to names that are valid UTF-8.

    Raises:
        ConfigError: The path is rejected.
    """
    expanded = argument_path(path)
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ConfigError("the path is not valid UTF-8", where=f"--out {path}", fix="choose a different name") from None
    return expanded


def option_path(text: str, *, read_once: bool = False) -> Path:
    """Convert the value of an option to a path; see `expand_home`.

    Raises:
        argparse.ArgumentTypeError: The path is rejected.
    """
    check_path_text(text)
    try:
        return _named(expand_home(Path(text), read_once=read_once))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def check_path_text(text: str) -> None:
    """Reject an empty path, as from `--out=$OUT` if the variable is not set: it would mean the current folder.

    Raises:
        argparse.ArgumentTypeError: The text is empty.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty")


def option_text(text: str) -> str:
    """Return the value of an option that is a name, such as that of a column.

    Raises:
        argparse.ArgumentTypeError: The text is empty; it would be treated like a missing option.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("the text is empty")
    return text


def option_name(text: str) -> str:
    """Convert the value of an option that is a path or a name; see `expand_home`.

    Raises:
        argparse.ArgumentTypeError: The path is rejected.
    """
    check_path_text(text)
    try:
        return expand_home(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run_path(text: str) -> Path:
    """Convert the value of an option to the folder of a run; the folder of its classifier is also accepted.

    Raises:
        argparse.ArgumentTypeError: The path is rejected.
    """
    path = option_path(text)
    within_run = (path / "clipit.json").is_file() and (path.parent / "config.yaml").is_file()
    return path.parent if within_run else path


def to_file_name(text: str) -> str:
    """Replace characters other than letters A-Z, digits, '.', '_' and '-' with dashes; "" if nothing else is left.

    Dots and dashes at both ends are removed. Different texts may yield the same name.
    """
    return _NOT_IN_FILE_NAMES.sub("-", text).strip(".-")
