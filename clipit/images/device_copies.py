"""Copy pixel batches to a device; a GPU receives them from pinned memory, one batch ahead of the computation."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    import torch

Key = TypeVar("Key")


def stack(pixels: Sequence[UInt8[np.ndarray, "3 h w"]], device: "torch.device") -> "torch.Tensor":
    """Stack the pixels of a batch as a tensor [b, 3, h, w] in the CPU's memory, pinned if the device is a GPU.

    Args:
        pixels: Pixels of each tile; if there are none, the tensor is empty.
        device: Device to which the batch will be copied.
    """
    import torch

    if not pixels:
        return torch.empty((0, 3, 0, 0), dtype=torch.uint8)
    if device.type != "cuda":
        return torch.from_numpy(np.stack(pixels))
    batch = torch.empty((len(pixels), *pixels[0].shape), dtype=torch.uint8, pin_memory=True)
    np.stack(pixels, out=batch.numpy())
    return batch


def copy_ahead(
    batches: Iterable[tuple[Key, "torch.Tensor"]], device: "torch.device"
) -> Iterator[tuple[Key, "torch.Tensor"]]:
    """Yield each batch on the device; on a GPU, the next batch is copied during the computation.

    Args:
        batches: Keys and tensors in the CPU's memory (see `stack`).
    """
    if device.type != "cuda":
        for key, batch in batches:
            yield key, batch.to(device)
        return
    import torch

    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    copied: tuple[Key, torch.Tensor, Any] | None = None
    for key, batch in batches:
        with torch.cuda.stream(stream):
            # PyTorch keeps the pinned memory of `batch` until the copy has finished.
            pending = key, batch.to(device, non_blocking=True), stream.record_event()
        if copied is not None:
            yield _wait_for(*copied)
        copied = pending
    if copied is not None:
        yield _wait_for(*copied)


def _wait_for(key: Key, batch: "torch.Tensor", event: Any) -> "tuple[Key, torch.Tensor]":
    """Make later work on the device wait for the copy, without blocking this thread."""
    import torch

    working = torch.cuda.current_stream(batch.device)
    working.wait_event(event)
    batch.record_stream(working)  # its memory is not reused before this work has finished
    return key, batch
