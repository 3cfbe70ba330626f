"""Test automatic precision and TF32 with a mocked GPU."""

from types import SimpleNamespace

import pytest
import torch
from tiny_models import MakeConfig

from clipit.distributed import Processes
from clipit.models.precision import tf32_products
from clipit.training.auto_precision import resolve_precision

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(("major", "expected"), [(7, "no"), (8, "bf16"), (9, "bf16")])
def test_automatic_precision_is_bf16_on_gpus_that_support_it(
    configure: MakeConfig, monkeypatch: pytest.MonkeyPatch, major: int, expected: str
) -> None:
    monkeypatch.setattr("clipit.training.auto_precision.get_processes", lambda: Processes(0, 1, CUDA))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
    assert resolve_precision(configure()).training.precision == expected
    assert resolve_precision(configure({"training.precision": "fp16"})).training.precision == "fp16"
    assert resolve_precision(configure(), recorded="no").training.precision == "no"


def test_mixed_precision_requires_support_on_all_gpus(configure: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipit.training.auto_precision.get_processes", lambda: Processes(0, 2, CUDA))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=9))
    monkeypatch.setattr(Processes, "broadcast", lambda _, value: value)
    monkeypatch.setattr(Processes, "gather", lambda _, value: [value, "no"])
    assert resolve_precision(configure()).training.precision == "no"
    monkeypatch.setattr(Processes, "gather", lambda _, value: [value, "bf16"])
    assert resolve_precision(configure()).training.precision == "bf16"


def test_tf32_is_allowed_only_inside_the_context() -> None:
    original = torch.get_float32_matmul_precision()
    try:
        for before in ("highest", "medium"):
            torch.set_float32_matmul_precision(before)
            with tf32_products(torch.device("cpu")):
                assert torch.get_float32_matmul_precision() == before
            with tf32_products(torch.device("cuda")):
                assert torch.get_float32_matmul_precision() == "high"
            assert torch.get_float32_matmul_precision() == before
            with pytest.raises(KeyboardInterrupt), tf32_products(torch.device("cuda")):
                raise KeyboardInterrupt
            assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(original)
