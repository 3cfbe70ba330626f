"""Tests of test-time adaptation against a slow reference, and of cases where it helps or harms."""

import numpy as np
import pytest
from adaptation_worlds import World, clear_world, misleading_world

from clipit.errors import DataError
from clipit.evaluation.test_time_adaptation import align_statistics, compute_feature_statistics, transductive


def slow_transductive(world: World, iterations: int = 10, k: int = 3) -> np.ndarray:
    """Transduction as defined in its docstring, tile by tile over the full n x n matrix."""
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
    result = np.empty_like(z)
    result[order] = z
    return result


@pytest.mark.parametrize("world", [clear_world(2.5, 1), misleading_world(1)])
def test_transduction_matches_a_slow_reference(world: World) -> None:
    np.testing.assert_allclose(transductive(world.ids, world.vectors, world.prior), slow_transductive(world), atol=1e-4)


def test_tile_order_and_vector_length_do_not_matter() -> None:
    world = clear_world(2.0, 3)
    order = np.random.default_rng(0).permutation(len(world.ids))
    expected = transductive(world.ids, world.vectors, world.prior)
    lengths = np.random.default_rng(1).uniform(0.5, 2, (len(world.ids), 1))
    permuted = transductive(world.ids[order], (world.vectors * lengths)[order], world.prior[order])
    np.testing.assert_allclose(permuted, expected[order], atol=1e-6)
    np.testing.assert_allclose(expected.sum(axis=1), 1, atol=1e-5)


def test_transduction_helps_for_clear_classes_and_harms_under_an_unrelated_grouping() -> None:
    for seed in (0, 1, 3):
        world = clear_world(2.5, seed)
        assert world.score(transductive(world.ids, world.vectors, world.prior)) > world.score(world.prior) + 0.03
        world = misleading_world(seed)
        assert world.score(transductive(world.ids, world.vectors, world.prior)) < world.score(world.prior) - 0.2


def test_feature_statistics_undo_a_shift() -> None:
    rng = np.random.default_rng(0)
    training = rng.normal(2.0, 3.0, (500, 6)).astype(np.float32)
    training[:, 5] = 1.0
    shifted = training * 0.5 - 4.0
    aligned = align_statistics(shifted, compute_feature_statistics(shifted), compute_feature_statistics(training))
    np.testing.assert_allclose(aligned, training, atol=1e-3)
    statistics = compute_feature_statistics(training)
    np.testing.assert_allclose(align_statistics(training, statistics, statistics), training, atol=1e-5)


def test_few_tiles_and_zero_vectors_raise_an_error() -> None:
    world = clear_world(1.0)
    with pytest.raises(DataError, match="needs at least 20 target tiles; there are 19"):
        transductive(world.ids[:19], world.vectors[:19], world.prior[:19])
    with pytest.raises(DataError, match="needs at least 20 target tiles"):
        compute_feature_statistics(world.vectors[:5])
    vectors = world.vectors.copy()
    vectors[7] = 0
    with pytest.raises(DataError, match=f"zero or not finite: {world.ids[7]}"):
        transductive(world.ids, vectors, world.prior)
