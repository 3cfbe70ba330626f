"""Check the argument types of the Python API and expand its paths; errors name the argument."""

import functools
import inspect
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, cast, get_args, get_origin

from clipit.config.paths import argument_path
from clipit.errors import ConfigError

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_WORDS = {
    str: "a string",
    Path: "a path",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    type(None): "None",
}
_NAMED = {kind.__name__: kind for kind in (str, Path, int, float, bool)} | {"None": type(None)}
_CHECKED_LATER = {"config", "overrides"}
"""Arguments that are not checked or expanded here, because the configuration's own checks give more specific errors."""


def checked_arguments(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Wrap a function: check the types of its arguments, and expand `~` and `$NAME` in those that may be paths.

    The function raises a `ConfigError` for arguments of the wrong type, and for empty or invalid paths.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            kinds = list(_alternatives(signature.parameters[name].annotation))
            if isinstance(value, Iterator):  # such as Path.glob, which can be read only once
                value = list(value)
            bound.arguments[name] = value = as_plain(value)
            if name not in _CHECKED_LATER and not any(_fits(value, kind) for kind in kinds):
                raise ConfigError(
                    f"{name} must be {_listed([_describe(kind) for kind in kinds])}, not {_given(value, kinds)}",
                    where=f"clipit.{function.__name__}",
                    fix=f"see help(clipit.{function.__name__})",
                )
            if _has_empty_path(value, kinds):
                raise ConfigError(
                    f"{name} is an empty path",
                    where=f"clipit.{function.__name__}",
                    fix='write the path; "." is the current folder',
                )
            if name not in _CHECKED_LATER:
                bound.arguments[name] = _expanded(value, kinds)
        return cast(Callable[..., _Result], function)(*bound.args, **bound.kwargs)

    return wrapped


def _has_empty_path(value: Any, kinds: Sequence[Any]) -> bool:
    """Return whether an argument that may be a path, or a member of a list of paths, is an empty string."""
    if isinstance(value, str):
        return Path in kinds and not value.strip()
    members = [list(_alternatives(get_args(kind)[0])) for kind in kinds if get_origin(kind) is Sequence]
    return _is_list(value) and any(_has_empty_path(each, one) for one in members for each in value)


def _expanded(value: Any, kinds: Sequence[Any]) -> Any:
    """Expand an argument that may be a path, or the members of a list of paths; return other values unchanged."""
    if isinstance(value, Path):
        return argument_path(value)
    if isinstance(value, str):
        return argument_path(value) if Path in kinds else value
    members = [list(_alternatives(get_args(kind)[0])) for kind in kinds if get_origin(kind) is Sequence]
    lists_paths = any(Path in one for one in members)
    return [_expanded(each, [Path]) for each in value] if lists_paths and _is_list(value) else value


def as_plain(value: Any) -> Any:
    """Convert path-like objects such as `os.DirEntry`, NumPy numbers, and lists of them; return other values unchanged.

    Path-like objects become paths, NumPy scalars become Python scalars, and torch devices become their names.
    """
    if isinstance(value, os.PathLike) and not isinstance(value, Path):
        return Path(os.fsdecode(value))
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return value.item()
    if (type(value).__module__, type(value).__name__) == ("torch", "device"):
        return str(value)
    return type(value)(map(as_plain, value)) if type(value) in (list, tuple) else value


def type_name(value: object) -> str:
    """Name the type of a value, with an article."""
    name = {"NoneType": "None", "dict": "a dictionary"}.get(type(value).__name__)
    return name or f"{'an' if type(value).__name__[0] in 'AEIOUaeiou' else 'a'} {type(value).__name__}"


def _alternatives(annotation: Any) -> Iterator[Any]:
    """Yield the members of a union as types, or as class names for classes that need not be imported."""
    if isinstance(annotation, str):
        for name in annotation.split(" | "):
            yield _NAMED.get(name, name.rpartition(".")[2])
    elif get_origin(annotation) in (Union, UnionType):
        yield from get_args(annotation)
    else:
        yield annotation


def _fits(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if isinstance(kind, str):  # name of a class that may not have been imported
        return kind in {base.__name__ for base in type(value).__mro__}
    if origin is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if origin is Mapping:
        return isinstance(value, Mapping)
    if origin is Sequence:
        members = list(_alternatives(get_args(kind)[0]))
        return _is_list(value) and all(any(_fits(member, one) for one in members) for member in value)
    if kind is float:
        return isinstance(value, Real)
    if kind is int:
        return isinstance(value, Integral)
    if kind is bool:  # NumPy's Booleans and integers such as 0 and 1 are accepted
        return isinstance(value, Integral) or type(value).__name__ in ("bool", "bool_")
    if kind is Path:
        return isinstance(value, os.PathLike)
    return isinstance(value, kind) if isinstance(kind, type) else True


def _given(value: Any, kinds: Sequence[Any]) -> str:
    """Describe an invalid value: a string by its repr, a list by its first invalid member's type, others by type."""
    lists = [kind for kind in kinds if get_origin(kind) is Sequence]
    if isinstance(value, str) and any(get_origin(kind) is Literal for kind in kinds):
        return repr(value)
    if lists and _is_list(value):
        members = [member for kind in lists for member in _alternatives(get_args(kind)[0])]
        wrong = next((each for each in value if not any(_fits(each, member) for member in members)), None)
        return f"a list with {type_name(wrong)}"
    return type_name(value)


def _is_list(value: Any) -> bool:
    """Return whether a value is list-like, such as an array or a column of a table.

    Sets are excluded because they have no order, and tables because iterating over one yields its column names.
    """
    return (
        isinstance(value, Collection)
        and not isinstance(value, str | bytes | Mapping | Set | os.PathLike)
        and not hasattr(value, "columns")
    )


def _describe(kind: Any, plural: bool = False) -> str:
    origin = get_origin(kind)
    if origin is Literal:
        return _listed([repr(value) for value in get_args(kind)])
    if origin is Sequence:
        members = [_describe(member, plural=True) for member in _alternatives(get_args(kind)[0])]
        return f"a list of {_listed(members)}"
    if origin is Mapping:
        return "a dictionary"
    words = _WORDS.get(kind, f"a {kind if isinstance(kind, str) else kind.__name__}")
    return f"{words.removeprefix('a ')}s" if plural else words


def _listed(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
