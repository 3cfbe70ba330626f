"""Precision of matrix products: TF32 for training and embedding on a GPU, and mixed precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch


@contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    """Allow TF32 for float32 matrix products on a GPU within the block; on a CPU, change nothing.

    TF32 has a 10-bit mantissa, like fp16, and is several times faster than float32 on tensor cores. Pairing never uses
    it (`clipit.stores.exact`), because the scores of neighbouring snippets differ by less than its rounding error.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def mixed_precision(device: torch.device) -> Literal["no", "bf16"]:
    """Choose the mixed precision for a device: bf16 on GPUs that support it, otherwise none."""
    if device.type != "cuda":
        return "no"
    return "bf16" if torch.cuda.get_device_properties(device).major >= 8 else "no"
