"""VLMs returned by a user's own function: `vlm.name: python:package.module:function`."""

import importlib

from clipit.errors import ModelError
from clipit.models.towers import Towers

PREFIX = "python"


def python_towers(path: str) -> Towers:
    """Call a user's function, which takes no arguments and returns the towers of a VLM.

    Only the user's configuration or call can name such a function; a classifier's files cannot.

    Args:
        path: `package.module:function`.

    Raises:
        ModelError: The function cannot be imported, or does not return `Towers`.
    """
    where = f"vlm.name: {PREFIX}:{path}"
    module, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(
            f"cannot import the VLM's function: {error}",
            where=where,
            fix="write python:package.module:function, and install the package or add its folder to PYTHONPATH",
        ) from error
    towers = function()
    if not isinstance(towers, Towers):
        raise ModelError(
            f"the function returns {type(towers).__name__}, not the towers of a VLM",
            where=where,
            fix="return clipit.models.towers.Towers; its docstring explains each part",
        )
    return towers
