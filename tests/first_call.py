"""Lazy shape and type checks of the package's functions, compiled by beartype on the first call.

Compiling all checks up front takes a third of the package's import time, and a worker calls only half of the functions.

To compare shapes, jaxtyping binds the arguments of each call and checks them twice, which only functions with arrays
need. Importing this module (jaxtyping's import hook does so for the first function) replaces `jaxtyping.jaxtyped`:
functions without arrays are then checked by beartype alone, which takes a fraction of the time.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from types import FunctionType
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

_check_shapes = jaxtyping.jaxtyped
_CONFIGURATION = BeartypeConf(violation_type=jaxtyping.TypeCheckError)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function with `beartype`, compiled on the first call."""
    compiled: Callable[..., Any] | None = None

    def call(*arguments: Any, **keywords: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = beartype(function)
        return compiled(*arguments, **keywords)

    return call


def _jaxtyped(*positional: Any, typechecker: Any = None) -> Any:
    """Replacement of `jaxtyping.jaxtyped` that forwards all calls except those of the import hook."""
    if positional:
        return _check_shapes(*positional, typechecker=typechecker)
    return functools.partial(_check, typechecker=typechecker)


def _check(decorated: Any, typechecker: Any) -> Any:
    """Decorate a function, or the initialiser of a data class, with the checks that its annotations need."""
    if inspect.isclass(decorated):
        initialiser = vars(decorated).get("__init__")
        if (
            is_dataclass(decorated)
            and isinstance(initialiser, FunctionType)
            and not hasattr(initialiser, "__wrapped__")
        ):
            decorated.__init__ = _check(initialiser, typechecker)
        return decorated
    if not isinstance(decorated, FunctionType) or inspect.isgeneratorfunction(decorated):
        return _check_shapes(decorated, typechecker=typechecker)
    hints = {name: _resolve(hint, decorated) for name, hint in decorated.__annotations__.items()}
    if any(map(_has_arrays, hints.values())):
        return _check_shapes(decorated, typechecker=typechecker)
    return _from_first_call(decorated, hints) if hints else decorated


def _resolve(hint: Any, function: FunctionType) -> Any:
    """Evaluate a string annotation; one that cannot be evaluated becomes `Any`, as in jaxtyping."""

    def holder(value: Any) -> None: ...

    holder.__annotations__ = {"value": hint}
    try:
        return get_type_hints(holder, function.__globals__, include_extras=True)["value"]
    except Exception:
        return Any


def _has_arrays(hint: Any) -> bool:
    """Whether a hint contains an array with a shape."""
    if isinstance(hint, list | tuple):  # the arguments of a callable
        return any(map(_has_arrays, hint))
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_has_arrays, get_args(hint)))


def _from_first_call(function: FunctionType, hints: dict[str, Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            copy = FunctionType(
                function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
            )
            copy.__kwdefaults__, copy.__annotations__ = function.__kwdefaults__, hints
            copy.__qualname__, copy.__module__ = function.__qualname__, function.__module__
            compiled = beartype(conf=_CONFIGURATION)(copy)
        return compiled(*arguments, **keywords)

    return call


jaxtyping.jaxtyped = _jaxtyped
