"""Shape and type checks of the package's functions, compiled by beartype when a function is first called.

Compiling them all takes a third of the time of importing the package, and a worker calls half of the functions.
"""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check arguments and results as `beartype` does, from the first call on."""
    compiled: Callable[..., Any] | None = None

    def call(*arguments: Any, **keywords: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = beartype(function)
        return compiled(*arguments, **keywords)

    return call
