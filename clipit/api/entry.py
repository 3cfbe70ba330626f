"""Behaviour that all functions of the Python API share: log messages are printed, errors are `ClipitError`."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from clipit.errors import machine_errors
from clipit.progress import show_messages

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def public(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Wrap a function: print log messages, and raise a full disk or a lack of memory as `ClipitError`.

    Messages are printed unless the program has configured logging; `logging.getLogger("clipit").setLevel("WARNING")`
    silences them.
    """

    @functools.wraps(function)
    def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        show_messages()
        with machine_errors():
            return function(*args, **kwargs)

    return wrapped
