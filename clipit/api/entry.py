"""Behaviour shared by all functions of the Python API: log messages are printed, and errors are `ClipitError`."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from clipit.errors import machine_errors
from clipit.progress import show_messages

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def public(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Wrap a function: print log messages, and convert errors such as a full disk or memory to `ClipitError`.

    Messages are printed unless the program has configured logging; `logging.getLogger("clipit").setLevel("WARNING")`
    silences them.
    """

    @functools.wraps(function)
    def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        show_messages()
        with machine_errors():
            return function(*args, **kwargs)

    return wrapped
