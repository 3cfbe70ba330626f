"""Run code with torch's own defaults, whatever the program that calls the package has set."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Compute gradients, and create float32 tensors, within the block.

    A program may have switched gradients off around its own inference, or chosen another default data type.
    """
    torch = sys.modules.get("torch")
    if torch is None:  # not imported yet, so nothing was changed
        yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(before)
