"""Tests of temperature scaling and calibration metrics."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from clipit.errors import DataError
from clipit.evaluation.calibration import fit_temperature, weighted_calibration, with_temperature
from clipit.evaluation.predictions import softmax


def sample_predictions(n: int, temperature: float, seed: int, n_classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Labels sampled from softmax(logits), and miscalibrated probabilities softmax(logits * temperature)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, n_classes)) * 2
    true = softmax(logits)
    labels = np.array([rng.choice(n_classes, p=p / p.sum()) for p in true.astype(np.float64)])
    return labels.astype(np.int64), softmax(logits * temperature + rng.normal(size=(n, 1)))


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_known_temperature_is_recovered(temperature: float) -> None:
    labels, probabilities = sample_predictions(6000, temperature, 0)
    fitted = fit_temperature(labels, probabilities)
    assert fitted.value == pytest.approx(temperature, rel=0.06)
    assert fitted.after <= fitted.before
    grid = [
        log_loss(labels, with_temperature(probabilities, fitted.value * factor), labels=range(4))
        for factor in (0.97, 1.0, 1.03)
    ]
    assert min(grid) == grid[1]
    assert fitted.after == pytest.approx(grid[1], abs=1e-4)


def test_scaling_improves_calibration_and_keeps_the_predicted_classes() -> None:
    fitted = fit_temperature(*sample_predictions(500, 3.0, 1))
    labels, before = sample_predictions(3000, 3.0, 2)
    after = with_temperature(before, fitted.value)
    assert (after.argmax(axis=1) == before.argmax(axis=1)).all()
    ones = np.ones((len(labels), 1))
    old, new = (weighted_calibration(labels, p, ones) for p in (before, after))
    assert all(new[name][0] < old[name][0] for name in ("ece", "nll", "brier"))
    assert new["ece"][0] < 0.05 < old["ece"][0]


def test_weighted_metrics_match_scikit_learn_on_repeated_tiles() -> None:
    labels, probabilities = sample_predictions(200, 1.5, 3)
    weights = np.random.default_rng(0).integers(0, 4, (200, 2)).astype(float)
    values = weighted_calibration(labels, probabilities, weights)
    for column in range(2):
        rows = np.repeat(np.arange(200), weights[:, column].astype(int))
        assert values["nll"][column] == pytest.approx(
            log_loss(labels[rows], probabilities[rows], labels=range(4)), rel=1e-5
        )
        expected = brier_score_loss(labels[rows], probabilities[rows], labels=range(4), scale_by_half=False)
        assert values["brier"][column] == pytest.approx(expected, rel=1e-5)


def test_zero_probability_gives_finite_values() -> None:
    labels, probabilities = sample_predictions(100, 1.0, 4)
    probabilities[:, 0], probabilities[:, 1] = 0.0, probabilities[:, :2].sum(axis=1)
    assert np.isfinite(with_temperature(probabilities, 5.0)).all()
    values = weighted_calibration(labels, probabilities, np.ones((100, 1)))
    assert np.isfinite(values["nll"]).all()


def test_unidentifiable_temperature_raises_an_error() -> None:
    labels, probabilities = sample_predictions(60, 1.0, 5)
    hidden = np.where(np.arange(60) < 19, labels, -1)
    with pytest.raises(DataError, match="needs at least 20 validation labels; there are 19"):
        fit_temperature(hidden, probabilities)
    with pytest.raises(DataError, match=r"(?s)no temperature between .* all tiles are predicted correctly"):
        fit_temperature(probabilities.argmax(axis=1).astype(np.int64), probabilities)
    with pytest.raises(DataError, match="no temperature between"):
        fit_temperature(probabilities.argmin(axis=1).astype(np.int64), probabilities)
