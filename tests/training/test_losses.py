"""Loss functions compared with slow references, and their sums over divided batches."""

import math

import pytest
import torch

from clipit.training.losses import cosine_distillation_sum, cross_entropy_sum


def test_cross_entropy_matches_hand_computed_values_and_ignores_unlabelled_rows() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0], [1.0, 1.0, 1.0]])
    labels = torch.tensor([0, -1, 2])
    first = math.log(math.exp(2) + 1 + math.exp(-1)) - 2
    assert cross_entropy_sum(logits, labels).item() == pytest.approx(first + math.log(3), abs=1e-6)


def test_label_smoothing_matches_hand_computed_values() -> None:
    logits = torch.tensor([[2.0, 0.0], [9.0, 9.0]])
    log_p = torch.log_softmax(logits[0], 0)
    expected = -(0.95 * log_p[0] + 0.05 * log_p[1]).item()
    assert cross_entropy_sum(logits, torch.tensor([0, -1]), 0.1).item() == pytest.approx(expected, abs=1e-6)


def test_distillation_is_scale_invariant_and_ignores_invalid_rows() -> None:
    predicted = torch.tensor([[3.0, 0.0], [1.0, 1.0], [1.0, 2.0]], requires_grad=True)
    target = torch.tensor([[0.5, 0.0], [-1.0, 1.0], [math.nan, math.nan]])
    loss = cosine_distillation_sum(predicted, target, torch.tensor([True, True, False]))
    assert loss.item() == pytest.approx(0.0 + 1.0, abs=1e-6)
    loss.backward()
    assert predicted.grad is not None and torch.isfinite(predicted.grad).all()
    assert predicted.grad[2].abs().sum() == 0


def test_losses_without_valid_rows_are_zero_with_zero_gradients() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    predicted = torch.randn(4, 5, requires_grad=True)
    loss = cross_entropy_sum(logits, torch.full((4,), -1))
    loss = loss + cosine_distillation_sum(predicted, torch.randn(4, 5), torch.zeros(4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    for leaf in (logits, predicted):
        assert leaf.grad is not None and (leaf.grad == 0).all()


def test_sums_do_not_depend_on_the_division_of_the_batch() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(10, 4), torch.tensor([0, 1, -1, 3, 2, -1, -1, 0, 1, 2])
    predicted, target, valid = torch.randn(10, 6), torch.randn(10, 6), labels != 1
    parts = [slice(0, 3), slice(3, 10)]
    divided = sum(cross_entropy_sum(logits[p], labels[p]) for p in parts)
    assert torch.allclose(cross_entropy_sum(logits, labels), torch.as_tensor(divided))
    divided = sum(cosine_distillation_sum(predicted[p], target[p], valid[p]) for p in parts)
    assert torch.allclose(cosine_distillation_sum(predicted, target, valid), torch.as_tensor(divided))


def test_distillation_gradients_and_half_precision() -> None:
    torch.manual_seed(0)
    predicted = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    target, valid = torch.randn(4, 5, dtype=torch.float64), torch.tensor([True, False, True, True])
    assert torch.autograd.gradcheck(lambda x: cosine_distillation_sum(x, target, valid), (predicted,))
    half = cosine_distillation_sum(predicted.bfloat16(), target.bfloat16(), valid)
    assert half.dtype == torch.float32
