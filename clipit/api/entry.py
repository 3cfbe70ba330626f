"""Behaviour shared by all functions of the Python API: log messages are printed, and errors are `ClipitError`."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from clipit.api.configuration import Config, as_config
from clipit.config.argument_types import checked_arguments
from clipit.crash_watch import named_warnings
from clipit.errors import ClipitError, machine_errors
from clipit.progress import show_messages
from clipit.torch_defaults import torch_defaults

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def public(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Wrap a function: check its arguments, print log messages, and turn errors such as a full disk into `ClipitError`.

    Messages are printed unless the program has configured logging; `logging.getLogger("clipit").setLevel("WARNING")`
    silences them.
    """

    called: Callable[..., _Result] = checked_arguments(function)
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        show_messages()
        try:
            with machine_errors(), named_warnings(), torch_defaults():
                if args and names[0] == "config":  # read before the function imports torch
                    return called(as_config(cast(Config, args[0]), needs_tiles=False), *args[1:], **kwargs)
                return called(*args, **kwargs)
        except ClipitError as error:
            _shorten_chain(error)
            raise

    return wrapped


def _shorten_chain(error: ClipitError) -> None:
    """Keep only the first cause of an error, so that Python prints at most one additional traceback above it.

    An error caused by another `ClipitError` is printed alone, because its message covers the cause.
    """
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is None:
        return
    cause.__cause__ = cause.__context__ = None
    if isinstance(cause, ClipitError):
        error.__cause__ = error.__context__ = None
