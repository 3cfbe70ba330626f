"""Shape and type checks of the package's functions, compiled by beartype when a function is first called.

Compiling them all takes a third of the time of importing the package, and a worker calls half of the functions.

jaxtyping's check of a call binds the arguments and checks them twice, so that it can compare shapes. Only functions
with arrays need that. Once this module is imported, which jaxtyping's import hook does for the first function, the hook
leaves all other functions to beartype, which checks the same types in a fraction of the time.
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
    """Check arguments and results as `beartype` does, from the first call on."""
    compiled: Callable[..., Any] | None = None

    def call(*arguments: Any, **keywords: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = beartype(function)
        return compiled(*arguments, **keywords)

    return call


def _jaxtyped(*positional: Any, typechecker: Any = None) -> Any:
    """Decorate as jaxtyping's import hook asks for, or pass on what anybody else asks for."""
    if positional:
        return _check_shapes(*positional, typechecker=typechecker)
    return functools.partial(_check, typechecker=typechecker)


def _check(decorated: Any, typechecker: Any) -> Any:
    """Decorate a function, or the initialiser of a data class, by the checks that its annotations need."""
    if inspect.isclass(decorated):
        made = vars(decorated).get("__init__")
        if is_dataclass(decorated) and isinstance(made, FunctionType) and not hasattr(made, "__wrapped__"):
            decorated.__init__ = _check(made, typechecker)
        return decorated
    if not isinstance(decorated, FunctionType) or inspect.isgeneratorfunction(decorated):
        return _check_shapes(decorated, typechecker=typechecker)
    hints = {name: _resolve(hint, decorated) for name, hint in decorated.__annotations__.items()}
    if any(map(_has_arrays, hints.values())):
        return _check_shapes(decorated, typechecker=typechecker)
    return _from_first_call(decorated, hints) if hints else decorated


def _resolve(hint: Any, function: FunctionType) -> Any:
    """Replace names in quotes by what they name; a hint whose names are unknown allows anything, as in jaxtyping."""

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
