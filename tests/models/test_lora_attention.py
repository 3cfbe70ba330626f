"""Test LoRA of packed attention against attention with the updates added to the weights."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipit.config.run import LoraConfig
from clipit.errors import ModelError
from clipit.models.lora import add_lora, merge_lora, target_modules

CAUSAL = torch.full((5, 5), float("-inf")).triu(1)


class Layer(nn.Module):
    def __init__(self, batch_first: bool, **options: Any) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 2, batch_first=batch_first, **options)

    def forward(self, tokens: Tensor, **options: Any) -> Tensor:
        output: Tensor = self.attn(tokens, tokens, tokens, **options)[0]
        return output


@pytest.mark.parametrize(
    ("batch_first", "options"),
    [
        (True, {"need_weights": False}),
        (False, {"need_weights": False, "attn_mask": CAUSAL}),
        (True, {"need_weights": False, "attn_mask": CAUSAL.isinf()}),
        (True, {"need_weights": False, "attn_mask": CAUSAL.repeat(6, 1, 1)}),
        (True, {"need_weights": False, "key_padding_mask": torch.tensor([[False] * 4 + [True]] * 3)}),
        (True, {}),
    ],
)
def test_adapted_and_merged_attention_match_attention_with_summed_weights(
    batch_first: bool, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    plain = Layer(batch_first).double().eval()
    adapted = add_lora(copy.deepcopy(plain), LoraConfig(rank=2, targets=("qkv",))).eval()
    factors = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert len(factors) == 4
    for weight in factors.values():
        nn.init.normal_(weight, std=0.3)
    layer = adapted.base_model.model.attn
    with torch.no_grad():
        plain.attn.in_proj_weight += layer.get_delta_weight("default")
        plain.attn.out_proj.weight += layer.base_layer.out_proj.get_delta_weight("default")
    tokens = torch.randn((3, 5, 16) if batch_first else (5, 3, 16), dtype=torch.float64)
    before = {name: weight.clone() for name, weight in adapted.named_parameters()}
    output = adapted(tokens, **options)
    torch.testing.assert_close(output, plain(tokens, **options))
    output.square().sum().backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in factors.values())
    assert all(bool((weight == before[name]).all()) for name, weight in adapted.named_parameters())
    merged = merge_lora(adapted)
    torch.testing.assert_close(merged(tokens, **options), plain(tokens, **options))
    assert list(merged.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize(
    ("options", "mask"),
    [({"qk_norm": True, "scale_heads": True}, None), ({"inner_norm": True, "qkv_bias": False}, CAUSAL)],
)
def test_attention_of_open_clip_is_adapted(options: dict[str, Any], mask: Tensor | None) -> None:
    attention = pytest.importorskip("open_clip.transformer").Attention
    torch.manual_seed(0)
    plain = nn.ModuleDict({"attn": attention(16, 2, norm_layer=nn.LayerNorm, **options)}).double().eval()
    assert target_modules(plain, ("qkv",)) == ["attn"]
    with pytest.raises(ModelError, match="part of packed attention"):
        target_modules(plain, ("out_proj",))
    adapted = add_lora(copy.deepcopy(plain), LoraConfig(rank=2, targets=("qkv",))).eval()
    factors = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert len(factors) == 4
    for weight in factors.values():
        nn.init.normal_(weight, std=0.3)
    layer, tokens = adapted.base_model.model.attn, torch.randn(3, 5, 16, dtype=torch.float64)
    before = plain.attn(tokens, attn_mask=mask)
    with torch.no_grad():
        plain.attn.in_proj_weight += layer.get_delta_weight("default")
        plain.attn.out_proj.weight += layer.base_layer.out_proj.get_delta_weight("default")
    output = layer(tokens, attn_mask=mask)
    torch.testing.assert_close(output, plain.attn(tokens, attn_mask=mask))
    assert (output - before).abs().max() > 1e-2
    output.square().sum().backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in factors.values())
    merged = merge_lora(adapted)
    torch.testing.assert_close(merged.attn(tokens, attn_mask=mask), plain.attn(tokens, attn_mask=mask))
    assert list(merged.state_dict()) == list(plain.state_dict())


def test_dropout_is_applied_before_the_factors() -> None:
    torch.manual_seed(0)
    adapted = add_lora(Layer(True).eval(), LoraConfig(rank=2, dropout=0.5, targets=("qkv",)))
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.3)
    tokens = torch.randn(1, 5, 16)
    adapted.train()
    assert not torch.equal(adapted(tokens, need_weights=False), adapted(tokens, need_weights=False))
    adapted.eval()
    assert torch.equal(adapted(tokens, need_weights=False), adapted(tokens, need_weights=False))


def test_attention_with_separate_weights_cannot_be_adapted() -> None:
    layer = Layer(True, kdim=8, vdim=8)
    with pytest.raises(ModelError, match="separate q, k and v weights"):
        target_modules(layer, ("attn",))
    with pytest.raises(ModelError, match="part of packed attention"):
        target_modules(Layer(True), ("out_proj",))
