"""Losses for bags and prompts, compared with plain loops, the CLIP loss and PyTorch functions."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from clipit.training.losses import (
    consistency_sum,
    correct_prior,
    cross_entropy_sum,
    many_to_many_sum,
    prototype_logits,
    sharpen,
    soft_cross_entropy_sum,
)


def slow_many_to_many(
    u: Tensor,
    u_mask: Tensor,
    v: Tensor,
    v_mask: Tensor,
    sigma: float,
    same: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[float, int]:
    """Reference implementation of the many-to-many loss with plain loops."""
    w = torch.ones(v.shape[:2]) if weights is None else weights
    usable = [i for i in range(len(u)) if u_mask[i].any() and (v_mask[i] & (w[i] > 0)).any()]
    score = {}
    for i in usable:
        for j in usable:
            total, mass = 0.0, 0.0
            for m in range(u.shape[1]):
                for n in range(v.shape[1]):
                    if u_mask[i, m] and v_mask[j, n]:
                        a, b = u[i, m].tolist(), v[j, n].tolist()
                        dot = sum(x * y for x, y in zip(a, b, strict=True))
                        lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
                        total += w[j, n].item() * math.exp(dot / lengths / sigma)
                        mass += w[j, n].item()
            score[i, j] = math.log(total / mass)
    loss = 0.0
    for i in usable:
        others = [j for j in usable if j == i or same is None or not same[i, j]]
        loss -= (score[i, i] - math.log(sum(math.exp(score[i, j]) for j in others))) / 2
        loss -= (score[i, i] - math.log(sum(math.exp(score[k, i]) for k in others))) / 2
    return loss, len(usable)


@pytest.mark.parametrize("m", [1, 2, 5])
@pytest.mark.parametrize("n", [1, 3, 5])
def test_many_to_many_matches_the_reference_for_any_size_and_mask(m: int, n: int) -> None:
    generator = torch.Generator().manual_seed(10 * m + n)
    u, v = torch.randn(6, m, 4, generator=generator), torch.randn(6, n, 4, generator=generator)
    u_mask, v_mask = torch.rand(6, m, generator=generator) < 0.6, torch.rand(6, n, generator=generator) < 0.6
    u_mask[0, 0] = v_mask[0, 0] = u_mask[1, -1] = v_mask[1, -1] = True
    v_mask[2] = False
    loss, count = many_to_many_sum(u, u_mask, v, v_mask, 0.2)
    expected, expected_count = slow_many_to_many(u.double(), u_mask, v.double(), v_mask, 0.2)
    assert count == expected_count and 2 <= count < 6
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 3), (5, 5)])
def test_excluded_negatives_and_text_weights_match_the_reference(m: int, n: int) -> None:
    generator = torch.Generator().manual_seed(m)
    u, v = torch.randn(7, m, 4, generator=generator), torch.randn(7, n, 4, generator=generator)
    u_mask, v_mask = torch.rand(7, m, generator=generator) < 0.7, torch.rand(7, n, generator=generator) < 0.7
    u_mask[:3, 0] = v_mask[:3, 0] = True
    v_mask[3] = False
    same = torch.rand(7, 7, generator=generator) < 0.3
    same = same | same.T
    same[0, 1] = True  # not symmetric
    weights = torch.rand(7, n, generator=generator) + 0.1
    weights[2, 1:] = 0
    masks = (u, u_mask, v, v_mask, 0.2)
    double = (u.double(), u_mask, v.double(), v_mask, 0.2)
    for options in ({"same": same}, {"weights": weights}, {"same": same, "weights": weights}):
        argument_names = {"weights": "text_weights"}
        loss, count = many_to_many_sum(
            *masks, **{argument_names.get(name, name): value for name, value in options.items()}
        )
        expected, expected_count = slow_many_to_many(*double, **options)
        assert count == expected_count and 3 <= count < 7
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        assert loss.item() != pytest.approx(slow_many_to_many(*double)[0], rel=1e-3) or (m, n) == (1, 1)
    parts = [many_to_many_sum(*masks, rows, same=same, text_weights=weights)[0] for rows in (slice(0, 2), slice(2, 7))]
    assert sum(part.item() for part in parts) == pytest.approx(expected, rel=1e-5)


def test_weights_are_normalised_and_equal_weights_have_no_effect() -> None:
    torch.manual_seed(7)
    u, v = torch.randn(5, 2, 4), torch.randn(5, 3, 4)
    image_mask, text_mask = torch.ones(5, 2, dtype=torch.bool), torch.rand(5, 3) < 0.7
    plain = many_to_many_sum(u, image_mask, v, text_mask, 0.1)
    equal = many_to_many_sum(u, image_mask, v, text_mask, 0.1, text_weights=torch.full((5, 3), 0.2))
    assert equal[0].item() == pytest.approx(plain[0].item(), rel=1e-6) and equal[1] == plain[1]
    weights = torch.rand(5, 3) + 0.1
    weighted = many_to_many_sum(u, image_mask, v, text_mask, 0.1, text_weights=weights)[0]
    assert many_to_many_sum(u, image_mask, v, text_mask, 0.1, text_weights=9 * weights)[0].item() == pytest.approx(
        weighted.item()
    )


def test_weights_of_absent_members_are_ignored_and_gradients_are_finite() -> None:
    torch.manual_seed(8)
    u, v = torch.randn(4, 2, 5, dtype=torch.float64, requires_grad=True), torch.randn(4, 2, 5, dtype=torch.float64)
    image_mask, text_mask = torch.ones(4, 2, dtype=torch.bool), torch.tensor([[True, False]] * 3 + [[True, True]])
    weights = torch.where(text_mask, torch.rand(4, 2), torch.tensor(math.nan))
    same = torch.eye(4, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    loss, count = many_to_many_sum(u, image_mask, v, text_mask, 0.1, same=same, text_weights=weights)
    loss.backward()
    assert count == 4 and torch.isfinite(loss) and u.grad is not None and torch.isfinite(u.grad).all()


def test_a_batch_without_negatives_has_zero_loss() -> None:
    u, v = torch.randn(3, 1, 4, requires_grad=True), torch.randn(3, 2, 4)
    same = torch.ones(3, 3, dtype=torch.bool)
    loss, count = many_to_many_sum(
        u, torch.ones(3, 1, dtype=torch.bool), v, torch.ones(3, 2, dtype=torch.bool), 0.1, same=same
    )
    loss.backward()
    assert (loss.item(), count) == (0.0, 3) and u.grad is not None and u.grad.abs().max() < 1e-6


def test_many_to_many_of_single_members_is_the_clip_loss() -> None:
    torch.manual_seed(0)
    u, v, mask = torch.randn(8, 1, 5), torch.randn(8, 1, 5), torch.ones(8, 1, dtype=torch.bool)
    logits = functional.normalize(u[:, 0], dim=1) @ functional.normalize(v[:, 0], dim=1).T / 0.07
    clip = (functional.cross_entropy(logits, torch.arange(8)) + functional.cross_entropy(logits.T, torch.arange(8))) / 2
    loss, count = many_to_many_sum(u, mask, v, mask, 0.07)
    assert loss.item() / count == pytest.approx(clip.item(), rel=1e-5)


def test_copies_of_a_member_do_not_change_the_loss() -> None:
    torch.manual_seed(1)
    u, v = torch.randn(4, 1, 5), torch.randn(4, 2, 5)
    once = torch.tensor([[True, False, False, False]] * 4)
    several = torch.tensor([[True, False, False, False], [True] * 4, [True, True, False, False], [True] * 4])
    text_mask = torch.ones(4, 2, dtype=torch.bool)
    copied = u.expand(-1, 4, -1)
    expected = many_to_many_sum(copied, once, v, text_mask, 0.1)[0]
    assert many_to_many_sum(copied, several, v, text_mask, 0.1)[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_losses_and_gradients_of_processes_add_up() -> None:
    torch.manual_seed(2)
    u, v = torch.randn(7, 3, 4, requires_grad=True), torch.randn(7, 2, 4)
    u_mask, v_mask = torch.rand(7, 3) < 0.8, torch.rand(7, 2) < 0.8
    v_mask[5] = False
    whole, count = many_to_many_sum(u, u_mask, v, v_mask, 0.1)
    parts = [many_to_many_sum(u, u_mask, v, v_mask, 0.1, rows=part) for part in (slice(0, 3), slice(3, 6), slice(6, 7))]
    assert sum(number for _, number in parts) == count
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item(), rel=1e-5)
    expected = torch.autograd.grad(whole, u, retain_graph=True)[0]
    summed = sum(torch.autograd.grad(loss, u, retain_graph=True)[0] for loss, _ in parts)
    assert torch.allclose(expected, summed, atol=1e-5)


def test_gradients_reach_members_and_temperature_but_not_masked_members() -> None:
    torch.manual_seed(3)
    u = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    v = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    sigma = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    u_mask = torch.tensor([[True, False], [True, True], [True, True]])
    v_mask = torch.tensor([[True, True], [False, True], [True, False]])
    assert torch.autograd.gradcheck(lambda a, b, t: many_to_many_sum(a, u_mask, b, v_mask, t)[0], (u, v, sigma))
    dirty = torch.where(u_mask[:, :, None], u.detach(), math.nan).requires_grad_()
    loss = many_to_many_sum(dirty, u_mask, v, v_mask, sigma)[0]
    loss.backward()
    assert loss.item() == pytest.approx(many_to_many_sum(u, u_mask, v, v_mask, sigma)[0].item())
    assert dirty.grad is not None and dirty.grad[0, 1].abs().sum() == 0
    assert v.grad is not None and torch.isfinite(v.grad).all() and torch.isfinite(dirty.grad).all()


def test_a_batch_without_pairs_of_bags_has_zero_loss_and_gradient() -> None:
    u, mask = torch.randn(3, 2, 4, requires_grad=True), torch.ones(3, 2, dtype=torch.bool)
    loss, count = many_to_many_sum(u, mask, torch.randn(3, 1, 4), torch.zeros(3, 1, dtype=torch.bool), 0.1)
    loss.backward()
    assert (loss.item(), count) == (0.0, 0)
    assert u.grad is not None and (u.grad == 0).all()


def test_half_precision_and_a_small_temperature_give_finite_values() -> None:
    torch.manual_seed(4)
    u, mask = torch.randn(4, 2, 8).bfloat16().requires_grad_(), torch.ones(4, 2, dtype=torch.bool)
    loss, _ = many_to_many_sum(u, mask, torch.randn(4, 2, 8).bfloat16(), mask, 1e-3)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert u.grad is not None and torch.isfinite(u.grad).all()


def test_soft_cross_entropy_matches_torch_and_ignores_rows_with_zero_weight() -> None:
    torch.manual_seed(5)
    logits, target = torch.randn(5, 3), torch.softmax(torch.randn(5, 3), dim=1)
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0])
    expected = (functional.cross_entropy(logits, target, reduction="none") * weights).sum()
    target[2] = math.nan
    assert soft_cross_entropy_sum(logits, target, weights).item() == pytest.approx(expected.item(), rel=1e-6)
    labels = torch.tensor([0, 2, 1, 1, 0])
    hard = soft_cross_entropy_sum(logits, functional.one_hot(labels, 3).float(), torch.ones(5))
    assert hard.item() == pytest.approx(cross_entropy_sum(logits, labels).item(), rel=1e-6)


def test_prototype_logits_are_cosines_over_the_temperature() -> None:
    projected, prototypes = torch.randn(4, 6), torch.randn(3, 6)
    expected = functional.cosine_similarity(projected[:, None], prototypes[None], dim=2) / 0.05
    assert torch.allclose(prototype_logits(projected, prototypes, 0.05), expected, atol=1e-4)
    assert torch.allclose(prototype_logits(7 * projected, prototypes, 0.05), expected, atol=1e-4)


def test_sharpening_matches_hand_computed_values() -> None:
    p = torch.tensor([[0.6, 0.3, 0.1], [1.0, 0.0, 0.0]])
    squares = torch.tensor([[0.36, 0.09, 0.01]]) / 0.46
    assert torch.allclose(sharpen(p, 0.5)[:1], squares, atol=1e-6)
    assert torch.allclose(sharpen(p, 0.5)[1], p[1])
    assert torch.allclose(sharpen(p, 1.0), p, atol=1e-6)


def test_prior_correction_matches_hand_computed_values() -> None:
    p, prior = torch.tensor([[0.6, 0.4], [0.5, 0.5]]), torch.tensor([0.75, 0.25])
    assert torch.allclose(correct_prior(p, prior), torch.tensor([[1 / 3, 2 / 3], [0.25, 0.75]]))
    assert torch.allclose(correct_prior(p, prior, 0.0), p)
    assert torch.isfinite(correct_prior(p, torch.tensor([1.0, 0.0]))).all()


def test_consistency_matches_hand_computed_values_and_ignores_masked_rows() -> None:
    a, b = torch.tensor([[0.0, 0.0], [math.nan, 1.0]]), torch.tensor([[math.log(3), 0.0], [2.0, 1.0]])
    a.requires_grad_()
    loss = consistency_sum(a, b, torch.tensor([True, False]))
    assert loss.item() == pytest.approx(0.25**2)
    loss.backward()
    assert a.grad is not None and torch.isfinite(a.grad).all()
    assert consistency_sum(b, b, torch.tensor([True, True])).item() == 0
