"""Floating-point formats of matrix products on a GPU: TF32 where it is precise enough, full float32 where it is not."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch


@contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    """Allow TF32 for float32 products on a GPU, as in training and embedding; on a CPU, change nothing.

    TF32 keeps 10 bits of the mantissa, as fp16 does, and is several times faster than float32 on tensor cores.
    """
    with _products(device, "high"):
        yield


@contextmanager
def full_products(device: torch.device) -> Iterator[None]:
    """Compute float32 products in full on a GPU, also where a program has allowed TF32; on a CPU, change nothing.

    Pairing needs it: scores of neighbouring snippets differ by less than TF32 resolves.
    """
    with _products(device, "highest"):
        yield


@contextmanager
def _products(device: torch.device, precision: Literal["high", "highest"]) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def mixed_precision(device: torch.device) -> Literal["no", "bf16"]:
    """Return the mixed precision that suits a device: bf16 on a GPU that computes in it, otherwise none."""
    if device.type != "cuda":
        return "no"
    return "bf16" if torch.cuda.get_device_properties(device).major >= 8 else "no"
