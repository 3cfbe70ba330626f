import copy

import peft
import pytest
import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from clipit.config.run import LoraConfig
from clipit.models.lora import add_lora
from clipit.models.lora_linear import LoraLinear, lora_linear


def _pair(bias: bool = True, dropout: float = 0.0) -> tuple[nn.Module, nn.Module]:
    """Return a small model adapted by clipit, and the same model adapted by peft."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(12, 20, bias=bias), nn.GELU(), nn.Linear(20, 6, bias=bias))
    adapted = add_lora(copy.deepcopy(plain), LoraConfig(rank=4, alpha=8, dropout=dropout, targets=("0", "2")))
    settings = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["0", "2"])
    peft_model = peft.get_peft_model(copy.deepcopy(plain), settings)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.3)
    peft_model.load_state_dict(adapted.state_dict())
    assert sum(isinstance(layer, LoraLinear) for layer in adapted.modules()) == 2
    assert not any(isinstance(layer, LoraLinear) for layer in peft_model.modules())
    assert sum(isinstance(layer, Linear) for layer in peft_model.modules()) == 2
    return adapted.train(), peft_model.train()


def _step(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    x = x.clone().requires_grad_()
    torch.manual_seed(1)  # for dropout
    output = model(x)
    output.float().square().sum().backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert x.grad is not None
    return output.detach(), gradients, x.grad


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 4), (0, 7)])
def test_output_and_gradients_match_those_of_peft(bias: bool, dropout: float, shape: tuple[int, ...]) -> None:
    model, peft_model = _pair(bias, dropout)
    x = torch.randn(*shape, 12)
    (output, gradients, input_gradient), (expected, expected_gradients, expected_input_gradient) = (
        _step(model, x),
        _step(peft_model, x),
    )
    torch.testing.assert_close(output, expected)
    assert len(gradients) == len(expected_gradients) == 4
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(input_gradient, expected_input_gradient, rtol=1e-4, atol=1e-5)


def test_mixed_precision_is_as_accurate_as_that_of_peft() -> None:
    model, peft_model = _pair()
    x = torch.randn(64, 12)
    exact = _step(peft_model, x)
    peft_model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        mixed, peft_mixed = _step(model, x), _step(peft_model, x)
    assert mixed[0].dtype == peft_mixed[0].dtype == torch.bfloat16
    for value, peft_value, reference in zip(
        [mixed[0], *mixed[1]], [peft_mixed[0], *peft_mixed[1]], [exact[0], *exact[1]], strict=True
    ):
        assert value.float().sub(reference).norm() <= 1.5 * peft_value.float().sub(reference).norm() + 1e-6
    assert all(gradient.dtype == torch.float32 for gradient in mixed[1])


def test_gradients_match_finite_differences() -> None:
    torch.manual_seed(0)
    x, down, up = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((2, 3, 5), (2, 5), (4, 2)))
    weight, bias = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *v: lora_linear(v[0], weight, bias, v[1], v[2], scale=1.7), (x, down, up))


def test_the_forward_method_of_subclasses_is_called() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = add_lora(nn.Sequential(Doubled(3, 4)), LoraConfig(rank=2, targets=("0",)))
    x = torch.randn(5, 3)
    base = next(layer for layer in model.modules() if isinstance(layer, Doubled))
    torch.testing.assert_close(model(x), 2 * nn.functional.linear(x, base.weight, base.bias))
