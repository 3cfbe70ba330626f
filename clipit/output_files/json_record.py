"""JSON objects whose errors for missing keys name the file and the key."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from clipit.errors import ArtifactError, ClipitError, shortlist


class JsonRecord(dict[str, Any]):
    """A JSON object read from a file.

    If a key is missing, `record["key"]` raises a `ClipitError` that names the file and the key, and states what to do.
    Otherwise, a record behaves like a dict; nested objects are also records.
    """

    def __init__(
        self,
        values: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
        path: Path | None = None,
        fix: str = "",
        error: type[ClipitError] = ArtifactError,
        keys: str = "",
    ) -> None:
        """Wrap an object.

        Args:
            values: Parsed object, or its items, which `dataclasses.asdict` passes to copy a dict.
            path: File that the object was read from; None for such a copy.
            fix: What to do if a key is missing, for the error message.
            error: Class of the error. An `ArtifactError` adds that an earlier version may have written the file.
            keys: Keys that lead to this object inside the file, such as `splits.test`.
        """
        inside = f"{keys}." if keys else ""
        super().__init__({key: _wrap(value, path, fix, error, f"{inside}{key}") for key, value in dict(values).items()})
        self._path, self._fix, self._error, self._keys = path, fix, error, keys

    def __missing__(self, key: str) -> NoReturn:
        problem = f"no {key!r} in {self._keys or 'this file'}"
        if issubclass(self._error, ArtifactError):
            problem += ", which an earlier version may have written"
        present = f"its keys are {shortlist(list(self))}" if self else "it is empty"
        raise self._error(f"{problem}; {present}", where=self._path, fix=self._fix)


def _wrap(value: Any, path: Path | None, fix: str, error: type[ClipitError], keys: str) -> Any:
    if isinstance(value, JsonRecord):
        return value
    if isinstance(value, dict):
        return JsonRecord(value, path, fix, error, keys)
    if isinstance(value, list):
        return [_wrap(item, path, fix, error, f"{keys}[{number}]") for number, item in enumerate(value)]
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Convert the pairs of a JSON object to a dict, and reject repeated keys (`object_pairs_hook` of json.loads).

    Raises:
        ValueError: A key is repeated.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"repeated key {next(key for key in keys if keys.count(key) > 1)!r}")
    return values
