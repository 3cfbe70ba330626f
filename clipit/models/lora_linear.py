"""LoRA for linear layers, with fewer passes over the activations than peft's own layer.

The functions have plain tensor types, because shape checks cannot be compiled with the backbone.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear, LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class LoraLinear(Linear):  # type: ignore[misc]
    """LoRA for a linear layer."""

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """Apply the layer and its updates to features of shape [..., in]; return features of shape [..., out]."""
        base = self.get_base_layer()
        # a class derived from nn.Linear may compute something else
        if type(base) is not nn.Linear or self.disable_adapters or self.merged or arguments or options:
            return super().forward(x, *arguments, **options)  # type: ignore[no-any-return]
        return adapted_linear(self, x, base.weight, base.bias)


def adapted_linear(adapter: LoraLayer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x W^T + b plus the updates of the active adapters, in the precision of x or of autocast.

    Args:
        adapter: peft layer with the low-rank factors.
        x: Features, float [..., in].
        weight: Frozen weight W, float [out, in].
        bias: Frozen bias b, float [out].
    """
    device, names = x.device.type, adapter.active_adapters
    if len(names) == 1 and not (adapter.training and isinstance(adapter.lora_dropout[names[0]], nn.Dropout)):
        down, up = adapter.lora_A[names[0]].weight, adapter.lora_B[names[0]].weight
        tensors = [x, weight, bias, down, up]
        if torch.is_autocast_enabled(device):
            tensors = [None if value is None else value.to(torch.get_autocast_dtype(device)) for value in tensors]
        if len({value.dtype for value in tensors if value is not None}) == 1:
            with torch.autocast(device, enabled=False):
                return lora_linear(*tensors, scale=adapter.scaling[names[0]])
    output = nn.functional.linear(x, weight, bias)
    for name in names:
        down, up = adapter.lora_A[name], adapter.lora_B[name]
        update = up(down(adapter.lora_dropout[name](x.to(down.weight.dtype))))
        output = output + (update * adapter.scaling[name]).to(output.dtype)
    return output


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, *, scale: float) -> Tensor:
    """Return x W^T + b + s (x A^T) B^T (Hu et al., arXiv 2106.09685, equation 3), with gradients of x, A and B.

    The update is added in place to the output and to the gradient of x, and the scale is applied to tensors of width r.
    The gradients of A and B are computed as products whose long dimension is contiguous, which is two to three times
    as fast on CPUs. The frozen weight and bias receive no gradient.

    Args:
        x: Features, float [..., in].
        weight: Frozen weight W, float [out, in].
        bias: Frozen bias b, float [out].
        down: Factor A, float [r, in].
        up: Factor B, float [out, r].
        scale: Factor s of the update, alpha / rank.

    Returns:
        Features, float [..., out].
    """
    output: Tensor = _LoraLinear.apply(x, weight, bias, down, up, scale)  # type: ignore[no-untyped-call]
    return output


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        output = nn.functional.linear(rows, weight, bias)
        narrow = rows @ down.t()
        output.addmm_(narrow, up.t(), alpha=scale)
        context.save_for_backward(rows, weight, down, up, narrow)
        context.scale, context.shape = scale, x.shape
        return output.view(*x.shape[:-1], len(weight))  # for an empty batch, -1 would be ambiguous

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, down, up, narrow = context.saved_tensors
        gradient = gradient.reshape(-1, gradient.shape[-1])
        grad_x = grad_down = grad_up = None
        if context.needs_input_grad[4]:
            grad_up = ((narrow * context.scale).t() @ gradient).t()
        grad_narrow = (gradient @ up).mul_(context.scale)
        if context.needs_input_grad[3]:
            grad_down = grad_narrow.t() @ rows
        if context.needs_input_grad[0]:
            grad_x = (gradient @ weight).addmm_(grad_narrow, down).view(context.shape)
        return grad_x, None, None, grad_down, grad_up, None
