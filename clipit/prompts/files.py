"""Finding and reading one YAML file of the prompts room; keys given twice are found, not merged."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from clipit.errors import DataError
from clipit.yaml_file import load_yaml

_HERE = Path(__file__).parent


def packaged(kind: str) -> list[str]:
    """Names of the files of one kind (`sets` or `bags`) that ship with the package."""
    return sorted(path.stem for path in (_HERE / kind).glob("*.yaml"))


def find(name_or_path: str | Path, kind: str) -> Path:
    """Path of a packaged file by its name, or of a file by its path.

    Raises:
        DataError: There is neither.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if str(name_or_path) in packaged(kind):
        return _HERE / kind / f"{name_or_path}.yaml"
    raise DataError(
        f"no such prompt {kind.removesuffix('s')}: {name_or_path}",
        where=path.absolute(),
        fix=f"give the path of a YAML file, or one of: {', '.join(packaged(kind))}",
    )


def read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """A YAML file's top-level mapping, and the keys that it gives twice.

    Raises:
        DataError: It cannot be read, is not UTF-8, is not YAML or holds no mapping.
    """
    try:
        value, repeated = load_yaml(path)
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error.reason}", where=path, fix="save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=path, fix="check its permissions") from error
    except yaml.YAMLError as error:
        raise DataError(f"not valid YAML: {error}", where=path, fix="correct the line that it names") from error
    if not isinstance(value, dict):
        raise DataError("not a YAML mapping", where=path, fix="start with `name:`, one key per line")
    return {str(key): entry for key, entry in value.items()}, [key for key, _ in repeated]


def text_problems(key: str, value: object, what: str) -> list[str]:
    """What is wrong with a list of texts: its type, emptiness, entries that are no text, repetitions."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [f"{key}: must be a list of {what}"]
    if not value:
        return [f"{key}: is empty; give at least one of the {what}"]
    problems = [
        f"{key}[{i}]: is empty; write a text, or leave it out"
        if isinstance(entry, str)
        else f"{key}[{i}]: {entry!r} is not a text; write it in quotes"
        for i, entry in enumerate(value)
        if not isinstance(entry, str) or not entry.strip()
    ]
    folded = [entry.strip().casefold() for entry in value if isinstance(entry, str)]
    problems += [f"{key}: {text!r} is given twice" for text in sorted({t for t in folded if folded.count(t) > 1})]
    return problems


def raise_problems(problems: Sequence[str], where: object) -> None:
    """Raise one `DataError` that lists all problems, if there are any."""
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise DataError(f"{count} in prompts:\n{listed}", where=where, fix="correct the keys named above")
