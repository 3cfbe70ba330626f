"""Test gradient checkpointing and compilation of backbones with pooling and LoRA."""

from pathlib import Path

import pytest
import timm
import torch
from tiny_backbones import TINY, save_vit
from torch import nn

from clipit.config.run import BackboneConfig, LoraConfig
from clipit.errors import ModelError
from clipit.models.backbones import load_backbone
from clipit.models.checkpointing import checkpointed_backbone, compiled_backbone, set_checkpointing
from clipit.models.lora import add_lora

PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def with_lora(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    adapted = add_lora(module, LoraConfig(rank=2, dropout=0.3)).train()
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    return adapted


def make_backbone(kind: str, folder: Path) -> nn.Module:
    if kind == "timm":
        return timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)
    name = str(save_vit(folder / kind, "Dinov2"))
    return load_backbone(BackboneConfig(name=name, pooling="cls_mean")).module


def gradients(module: nn.Module) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    module.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    module(PIXELS).square().sum().backward()
    grads = {name: weight.grad.clone() for name, weight in module.named_parameters() if weight.grad is not None}
    return grads, torch.rand(3)


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_checkpointing_does_not_change_gradients_or_random_numbers(kind: str, tmp_path: Path) -> None:
    module = with_lora(make_backbone(kind, tmp_path))
    expected, next_numbers = gradients(module)
    saved: list[torch.Tensor] = []

    def record(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    def count_saved() -> int:
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            module(PIXELS)
        return len(saved)

    saved_without_checkpointing = count_saved()
    assert set_checkpointing(module, True)
    assert count_saved() < saved_without_checkpointing / 4
    checkpointed, numbers_after = gradients(module)
    assert (
        expected
        and all(torch.equal(expected[name], checkpointed[name]) for name in expected)
        and expected.keys() == checkpointed.keys()
    )
    assert torch.equal(next_numbers, numbers_after)
    assert set_checkpointing(module, False) and count_saved() == saved_without_checkpointing


def test_set_checkpointing_returns_false_for_unsupported_models() -> None:
    assert not set_checkpointing(nn.Linear(2, 2), True)


def test_compilation_keeps_parameter_names_and_is_undone() -> None:
    module = with_lora(make_backbone("timm", Path())).eval()
    names, expected = list(module.state_dict()), module(PIXELS)
    calls: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        calls.append(1)
        return graph.forward

    with compiled_backbone(module, True, backend=backend):
        assert torch.allclose(module(PIXELS), expected, atol=1e-5) and calls
        assert list(module.state_dict()) == names
    calls.clear()
    torch._dynamo.reset()
    assert torch.equal(module(PIXELS), expected) and not calls


def test_the_backbone_is_restored_after_a_failed_compilation() -> None:
    module = with_lora(make_backbone("timm", Path()))
    torch._dynamo.reset()

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        raise RuntimeError("no C++ compiler")

    expected = module.eval()(PIXELS)
    failure = pytest.raises(ModelError, match=r"(?s)torch\.compile failed.*no C\+\+ compiler.*training\.compile")
    with failure, checkpointed_backbone(module, True), compiled_backbone(module, True, backend=backend):
        assert module.get_base_model().grad_checkpointing
        module(PIXELS)
    assert not module.get_base_model().grad_checkpointing
    assert torch.equal(module(PIXELS), expected)
