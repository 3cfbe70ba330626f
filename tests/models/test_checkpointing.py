"""Gradient checkpointing and compilation of backbones, through pooling and LoRA."""

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


def backbone_of(kind: str, folder: Path) -> nn.Module:
    if kind == "timm":
        return timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)
    name = str(save_vit(folder / kind, "Dinov2"))
    return load_backbone(BackboneConfig(name=name, pooling="cls_mean")).module


def gradients(module: nn.Module) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    module.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    module(PIXELS).square().sum().backward()
    found = {name: weight.grad.clone() for name, weight in module.named_parameters() if weight.grad is not None}
    return found, torch.rand(3)


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_gradients_and_random_numbers_with_dropout_are_those_without_checkpointing(kind: str, tmp_path: Path) -> None:
    module = with_lora(backbone_of(kind, tmp_path))
    plain, next_numbers = gradients(module)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    def count_kept() -> int:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            module(PIXELS)
        return len(kept)

    all_kept = count_kept()
    assert set_checkpointing(module, True)
    assert count_kept() < all_kept / 4
    again, numbers_after = gradients(module)
    assert plain and all(torch.equal(plain[name], again[name]) for name in plain) and plain.keys() == again.keys()
    assert torch.equal(next_numbers, numbers_after)
    assert set_checkpointing(module, False) and count_kept() == all_kept


def test_a_model_without_checkpointing_is_reported_and_unchanged() -> None:
    assert not set_checkpointing(nn.Linear(2, 2), True)


def test_a_compiled_backbone_keeps_its_names_and_can_be_undone() -> None:
    module = with_lora(backbone_of("timm", Path())).eval()
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


def test_a_failure_to_compile_is_an_error_in_evaluation_too_and_the_backbone_is_uncompiled_and_plain_again() -> None:
    module = with_lora(backbone_of("timm", Path()))
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
