"""Adaptation against a slow reading of its formulas; the guard where adaptation helps and where it harms."""

import numpy as np
import pytest
from adaptation_worlds import World, any_world, clear_world, misleading_world

from clipit.errors import DataError
from clipit.evaluation.adaptation import align_statistics, statistics_of, transductive
from clipit.evaluation.adaptation_guard import Case, guard_errors, judge
from clipit.evaluation.intervals import bootstrap
from clipit.evaluation.metrics import weighted_scores


def slow_transductive(world: World, iterations: int = 10, k: int = 3) -> np.ndarray:
    """The formulas of the docstring, tile by tile, over the whole n x n matrix."""
    order = np.argsort(world.ids)
    f = world.vectors[order].astype(float)
    f = f / np.linalg.norm(f, axis=1, keepdims=True)
    p = np.maximum(world.prior[order].astype(float), 1e-6)
    n, d = f.shape
    cosines = f @ f.T
    w = np.zeros((n, n))
    for i in range(n):
        others = sorted((j for j in range(n) if j != i), key=lambda j: (-round(cosines[i, j], 6), j))[:k]
        for j in others:
            w[i, j] += max(cosines[i, j], 0) / 2
            w[j, i] += max(cosines[i, j], 0) / 2
    z = p / p.sum(axis=1, keepdims=True)
    means = np.stack([np.average(f, axis=0, weights=z[:, c]) for c in range(p.shape[1])])
    variance = np.full(d, 1 / d)
    for _ in range(iterations):
        log_n = np.stack([-0.5 * ((f - m) ** 2 / variance).sum(axis=1) for m in means], axis=1)
        for _ in range(5):
            raw = p * np.exp(10 / d * (log_n - log_n.max(axis=1, keepdims=True)) + w @ z)
            z = raw / raw.sum(axis=1, keepdims=True)
        means = np.stack([np.average(f, axis=0, weights=z[:, c]) for c in range(p.shape[1])])
        variance = sum((z[:, c, None] * (f - means[c]) ** 2).sum(axis=0) for c in range(p.shape[1])) / n
        variance = np.maximum(variance, 1e-3 / d)
    found = np.empty_like(z)
    found[order] = z
    return found


def change_bounds(world: World, adapted: np.ndarray) -> tuple[float | None, float | None]:
    """Of the paired 95 % interval of the change of balanced accuracy."""
    name = "balanced_accuracy"

    def change(weights: np.ndarray) -> dict[str, np.ndarray]:
        """In each resample."""
        new, old = (weighted_scores(world.labels, p, weights, (name,))[name] for p in (adapted, world.prior))
        return {name: new - old}

    found = bootstrap(change, np.full(len(world.ids), ""), 100)[name]
    return found.low, found.high


@pytest.mark.parametrize("world", [clear_world(2.5, 1), misleading_world(1)])
def test_transduction_is_what_its_formulas_say(world: World) -> None:
    np.testing.assert_allclose(transductive(world.ids, world.vectors, world.prior), slow_transductive(world), atol=1e-4)


def test_the_order_of_the_tiles_and_the_length_of_vectors_do_not_matter() -> None:
    world = clear_world(2.0, 3)
    mixed = np.random.default_rng(0).permutation(len(world.ids))
    once = transductive(world.ids, world.vectors, world.prior)
    lengths = np.random.default_rng(1).uniform(0.5, 2, (len(world.ids), 1))
    again = transductive(world.ids[mixed], (world.vectors * lengths)[mixed], world.prior[mixed])
    np.testing.assert_allclose(again, once[mixed], atol=1e-6)
    np.testing.assert_allclose(once.sum(axis=1), 1, atol=1e-5)


def test_it_helps_among_clear_classes_and_the_guard_lets_it() -> None:
    for seed in range(3):
        world = clear_world(2.5, seed)
        adapted = transductive(world.ids, world.vectors, world.prior)
        assert world.score(adapted) > world.score(world.prior) + 0.03
        verdict = judge(world.prior, adapted)
        assert verdict.accepted and not verdict.reasons


def test_it_harms_under_another_grouping_and_the_guard_refuses() -> None:
    for seed in (0, 1, 3):
        world = misleading_world(seed)
        adapted = transductive(world.ids, world.vectors, world.prior)
        assert world.score(adapted) < world.score(world.prior) - 0.2
        verdict = judge(world.prior, adapted)
        assert not verdict.accepted
        assert any("would change class" in reason for reason in verdict.reasons)


def test_the_guard_refuses_predictions_that_say_nothing() -> None:
    rng = np.random.default_rng(0)
    flat = (np.full((100, 4), 0.25) + rng.uniform(0, 1e-3, (100, 4))).astype(np.float32)
    verdict = judge(flat, flat)
    assert verdict.agreement == 1.0 and verdict.moved == 0.0
    assert not verdict.accepted and "say little" in verdict.reasons[0]
    one_class = np.eye(4, dtype=np.float32)[np.zeros(100, int)]
    assert not judge(one_class, one_class).accepted
    with pytest.raises(DataError, match="no tile to judge"):
        judge(flat[:0], flat[:0])


def test_the_guards_error_rate_on_simulated_sets_that_did_not_set_it() -> None:
    """100 of the worlds of another seed: over them adaptation loses on average, and with the guard it gains."""
    rng, cases = np.random.default_rng(3), []
    for _ in range(100):
        world = any_world(rng)
        adapted = transductive(world.ids, world.vectors, world.prior)
        change = world.score(adapted) - world.score(world.prior)
        cases.append(Case(judge(world.prior, adapted).accepted, change, *change_bounds(world, adapted)))
    errors = guard_errors(cases)
    assert errors.cases == 100 and errors.harmful > 20 and errors.helpful > 20
    assert errors.let_through / errors.harmful < 0.45
    assert errors.refused / errors.helpful < 0.6
    assert errors.change_always is not None and errors.change_guarded is not None
    assert errors.change_guarded > max(errors.change_always, 0)


def test_guard_errors_are_shares_of_what_was_lost_and_of_what_was_gained() -> None:
    lost, gained, unclear = (-0.3, -0.1), (0.1, 0.5), (-0.01, 0.4)
    cases = [
        Case(True, -0.2, *lost), Case(True, -0.2, *lost), Case(False, -0.1, *lost),
        Case(True, 0.3, *gained), Case(False, 0.3, *gained), Case(False, 0.2, *gained), Case(False, 0.2, *gained),
        Case(True, 0.2, *unclear), Case(False, -0.4),
    ]  # fmt: skip
    found = guard_errors(cases)
    assert (found.cases, found.accepted, found.without_interval) == (9, 4, 1)
    assert (found.harmful, found.let_through, found.helpful, found.refused) == (3, 2, 4, 3)
    assert (found.share_let_through, found.share_refused) == (pytest.approx(2 / 3), 3 / 4), "not of all 9"
    assert found.change_always == pytest.approx((-0.5 + 1.0 + 0.2 - 0.4) / 9)
    assert found.change_guarded == pytest.approx((-0.4 + 0.3 + 0.2) / 9)


def test_guard_errors_without_cases_are_no_numbers() -> None:
    nothing = guard_errors([])
    assert nothing.cases == 0 and nothing.change_guarded is nothing.share_let_through is nothing.share_refused is None
    only_gained = guard_errors([Case(True, 0.2, 0.1, 0.3), Case(True, -0.2)])
    assert only_gained.share_let_through is None and only_gained.share_refused == 0.0
    assert only_gained.harmful == 0, "a loss without an interval is no loss"


def test_feature_statistics_undo_a_shift_and_leave_dead_features() -> None:
    rng = np.random.default_rng(0)
    training = rng.normal(2.0, 3.0, (500, 6)).astype(np.float32)
    training[:, 5] = 1.0
    shifted = training * 0.5 - 4.0
    moved = align_statistics(shifted, statistics_of(shifted), statistics_of(training))
    np.testing.assert_allclose(moved, training, atol=1e-3)
    same = statistics_of(training)
    np.testing.assert_allclose(align_statistics(training, same, same), training, atol=1e-5)


def test_few_tiles_and_empty_vectors_are_refused() -> None:
    world = clear_world(1.0)
    with pytest.raises(DataError, match="needs 20 target tiles; there are 19"):
        transductive(world.ids[:19], world.vectors[:19], world.prior[:19])
    with pytest.raises(DataError, match="needs 20 target tiles"):
        statistics_of(world.vectors[:5])
    vectors = world.vectors.copy()
    vectors[7] = 0
    with pytest.raises(DataError, match=f"length 0 or not finite: {world.ids[7]}"):
        transductive(world.ids, vectors, world.prior)
