"""Tests of the adaptation guard, which rejects shifted class proportions and accepts shifted images."""

import numpy as np
import pandas as pd
import pytest
from adaptation_worlds import Origin, make_origin
from scipy.stats import multivariate_normal

from clipit.errors import DataError
from clipit.evaluation.adaptation_guard import (
    MAX_TILES,
    MIN_MISFIT,
    TrainingMixture,
    fit_mixture,
    judge_adaptation,
)
from clipit.evaluation.test_time_adaptation import align_statistics, compute_feature_statistics
from clipit.studies.robustness.guard_errors import count_guard_errors


def fit_origin_mixture(origin: Origin) -> TrainingMixture:
    return fit_mixture(origin.training, origin.probabilities(origin.training))


def guard_table(*cases: tuple[bool, float, float | None, float | None]) -> pd.DataFrame:
    """Table of adaptations, each given as (accepted, change, low, high)."""
    rows = [("accepted" if accepted else "refused", *change) for accepted, *change in cases]
    return pd.DataFrame(rows, columns=["guard", "change", "change_low", "change_high"], dtype=object)


def accuracy_gain(origin: Origin, labels: np.ndarray, vectors: np.ndarray) -> float:
    """Change in accuracy after aligning feature statistics."""
    aligned = align_statistics(
        vectors, compute_feature_statistics(vectors), compute_feature_statistics(origin.training)
    )
    before, after = (origin.probabilities(x).argmax(axis=1) == labels for x in (vectors, aligned))
    return float(after.mean() - before.mean())


def change_images(origin: Origin, rng: np.random.Generator, vectors: np.ndarray) -> np.ndarray:
    return vectors * 0.6 + 1.5 * rng.normal(size=vectors.shape[1])


def test_misfit_equals_its_definition() -> None:
    """The reference uses scipy's densities and a plain EM loop for the class shares."""
    rng = np.random.default_rng(0)
    origin = make_origin(rng, 3, 5)
    vectors = origin.draw(rng, 60)[1] + 0.7
    mixture = fit_origin_mixture(origin)
    covariance = np.linalg.inv(mixture.whitening @ mixture.whitening.T)
    centres = mixture.means @ np.linalg.inv(mixture.whitening)
    densities = np.stack([multivariate_normal(m, covariance).pdf(vectors) for m in centres], axis=1)
    shares = mixture.counts / mixture.counts.sum()
    for _ in range(50):
        joint = densities * shares
        shares = (joint / joint.sum(axis=1, keepdims=True)).mean(axis=0)
    gap = vectors.mean(axis=0) - shares @ centres
    variance = 1 / 60 + (shares**2 / mixture.counts).sum()
    expected = gap @ np.linalg.inv(covariance) @ gap / 5 / variance
    assert judge_adaptation(mixture, vectors).misfit == pytest.approx(expected, rel=1e-6)
    assert judge_adaptation(mixture, vectors[rng.permutation(60)]).misfit == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shares", [None, [0.9, 0.1, 0, 0], [0, 0, 0, 1.0]])
@pytest.mark.parametrize(("training", "n"), [(100, 400), (600, 30), (600, 400), (1000, 5000)])
def test_misfit_is_about_1_for_any_class_proportions(shares: list[float] | None, training: int, n: int) -> None:
    """This also holds for few training tiles, whose means are inaccurate."""
    rng = np.random.default_rng(n)
    misfits = []
    for _ in range(20):
        origin = make_origin(rng, training=training)
        vectors = origin.draw(rng, n, None if shares is None else np.array(shares))[1]
        misfits.append(judge_adaptation(fit_origin_mixture(origin), vectors).misfit)
    assert 0.3 < float(np.mean(misfits)) < 2.5 and np.mean(np.array(misfits) >= MIN_MISFIT) <= 0.05


def test_shifted_class_proportions_are_rejected() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        origin = make_origin(rng)
        labels, vectors = origin.draw(rng, 200, np.array([0.9, 0.1, 0, 0]))
        verdict = judge_adaptation(fit_origin_mixture(origin), vectors)
        assert accuracy_gain(origin, labels, vectors) < -0.05
        assert not verdict.accepted and "a mixture of the training classes explains the tiles' mean" in verdict.reason


def test_shifted_images_are_accepted() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        origin = make_origin(rng)
        labels, vectors = origin.draw(rng, 200)
        vectors = change_images(origin, rng, vectors)
        verdict = judge_adaptation(fit_origin_mixture(origin), vectors)
        assert accuracy_gain(origin, labels, vectors) > 0.04
        assert verdict.accepted and not verdict.reason and verdict.misfit >= MIN_MISFIT


def test_guard_improves_the_mean_gain_over_simulated_targets() -> None:
    """Class proportions, images or both are shifted; adaptation gains more with the guard than without."""
    rng, cases = np.random.default_rng(3), []
    for _ in range(150):
        origin = make_origin(rng, int(rng.integers(2, 7)))
        shares = rng.dirichlet(np.full(len(origin.means), rng.choice([0.3, 1.0, 50.0])))
        labels, vectors = origin.draw(rng, int(rng.choice([30, 100, 300])), shares)
        if rng.random() < 0.5:
            vectors = change_images(origin, rng, vectors)
        change = accuracy_gain(origin, labels, vectors)
        bound = (change, change) if abs(change) > 0.02 else (None, None)
        cases.append((judge_adaptation(fit_origin_mixture(origin), vectors).accepted, change, *bound))
    errors = count_guard_errors(guard_table(*cases))
    assert errors.harmful > 30 and errors.helpful > 30
    assert errors.let_through / errors.harmful < 0.45
    assert errors.refused / errors.helpful < 0.2
    assert errors.change_always is not None and errors.change_guarded is not None
    assert errors.change_guarded > max(errors.change_always, 0) + 0.02


def test_small_shift_is_rejected_even_for_many_tiles() -> None:
    rng = np.random.default_rng(1)
    origin = make_origin(rng)
    _, vectors = origin.draw(rng, 20_000)
    mixture = fit_origin_mixture(origin)
    assert not judge_adaptation(mixture, vectors + 0.03).accepted
    assert (
        judge_adaptation(mixture, vectors + 0.5).misfit
        < 2 * judge_adaptation(mixture, vectors[:MAX_TILES] + 0.5).misfit
    ), "the misfit must not grow with the number of tiles"


def test_constant_features_rare_classes_and_few_tiles() -> None:
    rng = np.random.default_rng(2)
    origin = make_origin(rng)
    constant = np.concatenate([origin.training, np.ones((len(origin.training), 3))], axis=1)
    predicted = origin.probabilities(origin.training)
    predicted[predicted.argmax(axis=1) == 2] = [0.9, 0.05, 0, 0.05]
    mixture = fit_mixture(constant, predicted)
    assert len(mixture.means) == 3
    assert (
        np.isfinite(judge_adaptation(mixture, constant[:40]).misfit)
        and not judge_adaptation(mixture, constant[:40]).accepted
    )
    with pytest.raises(DataError, match="no class is predicted for at least 5 training tiles"):
        fit_mixture(constant[:4], predicted[:4])
    with pytest.raises(DataError, match="no target tiles"):
        judge_adaptation(mixture, constant[:0])
    broken = constant.copy()
    broken[3, 0] = np.nan
    with pytest.raises(DataError, match=r"(?s)1 of 600 tiles has vectors that are not finite.*the training split"):
        fit_mixture(broken, predicted)
    with pytest.raises(DataError, match=r"(?s)1 of 40 tiles has vectors that are not finite.*the target tiles"):
        judge_adaptation(mixture, broken[:40])
    with pytest.raises(DataError, match=r"(?s)1 of 600 tiles has vectors that are not finite.*the training tiles"):
        compute_feature_statistics(broken, "training")


def test_guard_error_rates() -> None:
    harmful, helpful, unclear = (-0.3, -0.1), (0.1, 0.5), (-0.01, 0.4)
    errors = count_guard_errors(
        guard_table(
            (True, -0.2, *harmful), (True, -0.2, *harmful), (False, -0.1, *harmful),
            (True, 0.3, *helpful), (False, 0.3, *helpful), (False, 0.2, *helpful), (False, 0.2, *helpful),
            (True, 0.2, *unclear), (False, -0.4, None, None),
        )
    )  # fmt: skip
    assert (errors.cases, errors.accepted, errors.without_interval) == (9, 4, 1)
    assert (errors.harmful, errors.let_through, errors.helpful, errors.refused) == (3, 2, 4, 3)
    assert (errors.share_let_through, errors.share_refused) == (pytest.approx(2 / 3), 3 / 4), (
        "rates are relative to the harmful and the helpful cases"
    )
    assert errors.change_always == pytest.approx((-0.5 + 1.0 + 0.2 - 0.4) / 9)
    assert errors.change_guarded == pytest.approx((-0.4 + 0.3 + 0.2) / 9)


def test_guard_errors_without_cases_are_undefined() -> None:
    no_cases = count_guard_errors(guard_table())
    assert (
        no_cases.cases == 0 and no_cases.change_guarded is no_cases.share_let_through is no_cases.share_refused is None
    )
    errors = count_guard_errors(guard_table((True, 0.2, 0.1, 0.3), (True, -0.2, None, None)))
    assert errors.share_let_through is None and errors.share_refused == 0.0
    assert errors.harmful == 0, "a loss without an interval is not counted as harmful"
