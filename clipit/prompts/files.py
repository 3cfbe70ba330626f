"""Find, read and validate prompt files, in YAML or JSON."""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipit.errors import DataError, counted, has_controls, shortlist
from clipit.input_files.nearby_files import similar_names
from clipit.input_files.yaml_file import load_mapping

_FOLDER = Path(__file__).parent
_MAX_BYTES = 8 * 2**20  # maximum size of a file
_SUFFIXES = (".yaml", ".yml", ".json")


def packaged(folder: str) -> list[str]:
    """Return the names of the packaged files in a folder, `sets` or `bags`."""
    return sorted(path.stem for path in (_FOLDER / folder).glob("*.yaml"))


def find(name_or_path: str | Path, folder: str) -> Path:
    """Find a prompt file by its path, or a packaged one by its name.

    Raises:
        DataError: There is no file or packaged file with this name, or the path is a folder.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if str(name_or_path) in packaged(folder):  # even if a folder has this name, such as that of a data set
        return _FOLDER / folder / f"{name_or_path}.yaml"
    if path.is_dir():
        names = sorted(file.name for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
        raise DataError(
            "a folder, not a prompt file",
            where=path,
            fix=f"name one of its files: {shortlist(names)}" if names else "name a YAML or JSON file",
        )
    raise unknown_prompts(name_or_path, folder, path.absolute())


def unknown_prompts(name_or_path: str | Path, folder: str, where: object, further: str = "") -> DataError:
    """Build the error for a name or path that is neither a file nor a packaged name.

    Its fix begins with the names of similar files, or with a packaged name that is spelled similarly.

    Args:
        name_or_path: Requested name or path.
        folder: `sets` or `bags`.
        further: Additional sources of prompts, for the fix; "" if there are none.
    """
    text = str(name_or_path)
    names = packaged(folder)
    if len(Path(text).parts) > 1 or Path(text).suffix.lower() in _SUFFIXES:
        return DataError(f"no such prompt file: {text}", where=where, fix=f"{similar_names(text)}; correct the path")
    close = difflib.get_close_matches(text, names, n=1)
    suggestion = f"did you mean {close[0]}? " if close else ""
    return DataError(
        f"unknown prompt {folder.removesuffix('s')} {text!r}",
        where=where,
        fix=f"{suggestion}use the path of a YAML or JSON file, or one of: {', '.join(names)}{further}",
    )


def read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Read the top-level mapping of a YAML or JSON file, and its repeated keys.

    Raises:
        DataError: The file cannot be read, is not UTF-8, YAML or JSON, or does not contain a mapping.
    """
    if path.suffix.lower() == ".json":
        return _read_json(path)
    value, repeated = load_mapping(path, "`name:`, one key per line")
    return {str(key): entry for key, entry in value.items()}, [f"{key} (line {line})" for key, line in repeated]


def _read_json(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Read a JSON file, which a YAML parser would reject if it is indented with tabs."""
    repeated: list[str] = []

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        repeated.extend(sorted({key for key in keys if keys.count(key) > 1}))
        return dict(pairs)

    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES >> 20} MiB")
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=mapping)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # fails for unpaired surrogates
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=path, fix="check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}", where=path, fix="correct or replace the file") from None
    if not isinstance(value, dict):
        raise DataError("not a JSON object", where=path, fix="start with { and the keys of a prompt set")
    return value, repeated


def key_problems(
    raw: Mapping[str, Any], repeated: Sequence[str], known: Sequence[str], required: Sequence[str]
) -> list[str]:
    """List the repeated, unknown and missing keys of a mapping."""
    problems = [f"{key}: is given twice; only the last value would be used" for key in repeated]
    problems += [f"{key}: unknown key; known keys are {', '.join(known)}" for key in raw if key not in known]
    return problems + [f"{key}: is missing" for key in required if raw.get(key) is None]


def text_problems(key: str, value: object, noun: str) -> list[str]:
    """List the problems with a list of texts: wrong types, no entries, empty or repeated ones, control characters."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [f"{key}: must be a list of {noun}"]
    if not value:
        return [f"{key}: is empty; add at least one entry ({noun})"]
    problems = [
        f"{key}[{i}]: is empty; add text, or remove the entry"
        if isinstance(entry, str)
        else f"{key}[{i}]: {entry!r} is not a string; write it in quotes"
        for i, entry in enumerate(value)
        if not isinstance(entry, str) or not entry.strip()
    ]
    problems += [
        f"{key}[{i}]: {entry!r} contains a line break or another control character; write it on one line"
        for i, entry in enumerate(value)
        if isinstance(entry, str) and has_controls(entry.strip())
    ]
    numbers = [i for i, entry in enumerate(value) if isinstance(entry, str)]
    folded = [value[i].strip().casefold() for i in numbers]
    for text in sorted({text for text in folded if folded.count(text) > 1}):
        first, second = [numbers[i] for i, other in enumerate(folded) if other == text][:2]
        problems.append(f"{key}: {text!r} is given twice, as {key}[{first}] and {key}[{second}]")
    return problems


def raise_prompt_problems(problems: Sequence[str], where: object, keys: str = "") -> None:
    """Raise one `DataError` with all problems, if any; `keys` describes the required keys, in case one is missing."""
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        count = counted(len(problems), "problem")
        missing = any(problem.endswith("is missing") for problem in problems)
        fix = "correct the keys named above" + (f"; {keys}" if keys and missing else "")
        raise DataError(f"{count} in prompts:\n{listed}", where=where, fix=fix)
