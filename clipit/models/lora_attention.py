"""LoRA for attention layers with packed weights, which PyTorch reads without calling a sub-layer."""

from typing import Any

import torch
from peft.tuners.lora.layer import MultiheadAttention
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from clipit.models.lora_linear import adapted_linear

_PACKED, _PROJECTION = "in_proj_weight", "out_proj.base_layer.weight"


class PackedAttention(MultiheadAttention):  # type: ignore[misc]
    """LoRA for the packed q, k, v weights and the output projection of `nn.MultiheadAttention`.

    peft 0.21's own layer adds the update of the output projection twice, and replaces the frozen weights with rounded
    copies in each forward pass. Here, the frozen weights do not change. Self-attention applies the low-rank factors to
    the tokens, which avoids the gradient of a full weight matrix; other calls use the sums of weights and updates.
    """

    def forward(self, query: Tensor, *arguments: Any, **options: Any) -> Any:
        """Apply the attention layer with the updates added to its weights, with the same arguments and result."""
        base = self.get_base_layer()
        if self.disable_adapters or self.merged:
            return base(query, *arguments, **options)
        is_self = len(arguments) == 2 and all(other is query for other in arguments) and query.dim() == 3
        plain = base.bias_k is None and not base.add_zero_attn and set(options) <= {"need_weights", "attn_mask"}
        if is_self and plain and options.get("need_weights", True) is False:
            return self._attend(query, options.get("attn_mask")), None
        return functional_call(base, self._sums(), (query, *arguments), options)

    def _attend(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        base = self.get_base_layer()
        if not base.batch_first:
            tokens = tokens.transpose(0, 1)
        batch, length, width = tokens.shape
        packed = adapted_linear(self, tokens, base.in_proj_weight, base.in_proj_bias)
        heads = packed.view(batch, length, 3, base.num_heads, width // base.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        if mask is not None:
            # In a Boolean mask, True means "ignore" in nn.MultiheadAttention, but "attend" in SDPA below.
            mask = ~mask if mask.dtype == torch.bool else mask.to(query.dtype)
            mask = mask.view(batch, base.num_heads, length, length) if mask.dim() == 3 else mask
        attended = F.scaled_dot_product_attention(
            query, key, value, mask, dropout_p=base.dropout if base.training else 0.0
        )
        output: Tensor = base.out_proj(attended.transpose(1, 2).reshape(batch, length, width))
        return output if base.batch_first else output.transpose(0, 1)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Return the plain attention layer, with the updates added to its weights if `merge`.

        Raises:
            ValueError: `safe_merge` is set, and a merged weight is not finite.
        """
        base: Any = self.get_base_layer()
        if merge:
            for name, value in self._sums().items():
                if safe_merge and not bool(value.isfinite().all()):
                    raise ValueError(f"the merged attention weights {name} are not finite")
                base.get_parameter(name).data = value.detach()
        base.out_proj = base.out_proj.get_base_layer()
        attention: nn.Module = base
        return attention

    def _sums(self) -> dict[str, Tensor]:
        """Return the sums of weights and updates, by weight name in the attention layer."""
        base = self.get_base_layer()
        output = base.out_proj
        packed, projection = base.in_proj_weight, output.get_base_layer().weight
        with torch.autocast(packed.device.type, enabled=False):  # the same sums as when merging
            for name in self.active_adapters:
                packed = packed + self.get_delta_weight(name)
                projection = projection + output.get_delta_weight(name)
        return {_PACKED: packed, _PROJECTION: projection}

    def _restore_weights(self) -> None:
        """Do nothing: the weights stay registered."""


class OpenClipAttention(PackedAttention):
    """LoRA for open_clip's own `Attention`, used in its blocks with normalised or scaled heads.

    The output projection is called as a layer. For the packed weights, the sums of weights and updates are used, so
    LoRA dropout applies to the output projection only.
    """

    def forward(self, query: Tensor, *arguments: Any, **options: Any) -> Any:
        """Apply the attention layer with the updates added to its weights, with the same arguments and result."""
        base = self.get_base_layer()
        if self.disable_adapters or self.merged:
            return base(query, *arguments, **options)
        return functional_call(base, {_PACKED: self._sums()[_PACKED]}, (query, *arguments), options)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        outputs, inputs = module.get_parameter(_PACKED).shape
        return inputs, outputs
