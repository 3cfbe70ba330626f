"""Floating-point formats of matrix products: TF32 for training and embedding on a GPU, and mixed precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch


@contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    """Allow TF32 for float32 products on a GPU, as in training and embedding; on a CPU, change nothing.

    TF32 has 10 bits of mantissa, as fp16 has, and is several times faster than float32 on tensor cores. Pairing never
    uses it (`clipit.stores.exact`), because scores of neighbouring snippets differ by less.
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
    """Return the mixed precision that suits a device: bf16 on a GPU that computes in it, otherwise none."""
    if device.type != "cuda":
        return "no"
    return "bf16" if torch.cuda.get_device_properties(device).major >= 8 else "no"
