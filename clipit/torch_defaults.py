"""Run code with torch's own defaults, whatever the program that calls the package has set."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Compute gradients, and create float32 tensors on the CPU unless stated otherwise, within the block.

    The calling program may have disabled gradients for its own inference, or set a different default dtype or device.
    """
    torch = sys.modules.get("torch")
    if torch is None:  # not imported yet, so nothing was changed
        yield
        return
    before = torch.get_default_dtype()
    # A default device slows down every operation, so it is set only where needed.
    device = nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad(), device:
            yield
    finally:
        torch.set_default_dtype(before)
