"""Low-rank adaptation of `nn.MultiheadAttention`, whose weights are read without calling a layer."""

from typing import Any

import torch
from peft.tuners.lora.layer import MultiheadAttention
from torch import Tensor, nn
from torch.func import functional_call


class PackedAttention(MultiheadAttention):  # type: ignore[misc]
    """Adapter of the packed q, k, v weights and the output projection of an attention.

    The layer of peft 0.21 adds the update of the output projection twice, and replaces the frozen weights by rounded
    copies in each forward pass. Here the forward pass computes with the sums, and the frozen weights stay as they are.
    """

    def forward(self, query: Tensor, *arguments: Any, **options: Any) -> Any:
        """Attend as the adapted layer does, with the updates added to its weights."""
        base = self.get_base_layer()
        if self.disable_adapters or self.merged:
            return base(query, *arguments, **options)
        return functional_call(base, self._sums(), (query, *arguments), options)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Return the plain attention, with the updates added to its weights if `merge`.

        Raises:
            ValueError: `safe_merge`, and a sum is not finite.
        """
        base: Any = self.get_base_layer()
        if merge:
            for name, value in self._sums().items():
                if safe_merge and not bool(value.isfinite().all()):
                    raise ValueError(f"the merged weights {name} of an attention are not finite")
                base.get_parameter(name).data = value.detach()
        base.out_proj = base.out_proj.get_base_layer()
        attention: nn.Module = base
        return attention

    def _sums(self) -> dict[str, Tensor]:
        """Return the sums of weights and updates, by their names in the attention."""
        base = self.get_base_layer()
        output = base.out_proj
        packed, projection = base.in_proj_weight, output.get_base_layer().weight
        with torch.autocast(packed.device.type, enabled=False):  # the sums are those that are merged
            for name in self.active_adapters:
                packed = packed + self.get_delta_weight(name)
                projection = projection + output.get_delta_weight(name)
        return {"in_proj_weight": packed, "out_proj.base_layer.weight": projection}

    def _restore_weights(self) -> None:
        """Do nothing: the weights stay registered."""
