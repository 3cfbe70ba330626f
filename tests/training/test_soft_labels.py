"""Soft labels and scores for choosing a step without labels."""

import numpy as np
import pytest

from clipit.config.run import SoftLabelsConfig
from clipit.errors import DataError
from clipit.training.monitor import information, target_agreement
from clipit.training.terms.soft_labels import make_soft_labels

P = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [1 / 3, 1 / 3, 1 / 3]], dtype=np.float32)


def test_soft_labels_are_unchanged_by_default() -> None:
    soft = make_soft_labels(P, SoftLabelsConfig(source="zero_shot"))
    assert np.allclose(soft.probabilities, P, atol=1e-6)
    assert soft.weights.tolist() == [1, 1, 1]


def test_sharpening_prior_correction_and_confidence_weights() -> None:
    soft = make_soft_labels(P, SoftLabelsConfig(source="zero_shot", temperature=0.5, confidence=True))
    assert np.allclose(soft.probabilities[0], np.array([49, 4, 1]) / 54, atol=1e-5)
    assert soft.weights[0] > soft.weights[1] > soft.weights[2] == pytest.approx(0, abs=1e-6)
    corrected = make_soft_labels(P, SoftLabelsConfig(source="zero_shot", prior_correction=1.0)).probabilities
    expected = P[0] / P.mean(axis=0)
    assert np.allclose(corrected[0], expected / expected.sum(), atol=1e-5)


def test_non_finite_probabilities_are_an_error() -> None:
    with pytest.raises(DataError, match="NaN or infinite"):
        make_soft_labels(np.array([[np.nan, 1.0]], dtype=np.float32), SoftLabelsConfig(source="zero_shot"))


def test_agreement_and_information() -> None:
    logits = np.array([[5, 0, 0], [0, 5, 0], [0, 0, 5]], dtype=np.float32)
    assert target_agreement(logits, P) == pytest.approx(1 / 3)
    confident, uniform, constant = (
        np.eye(3, dtype=np.float32),
        np.full((3, 3), 1 / 3, dtype=np.float32),
        np.tile(P[:1], (3, 1)),
    )
    assert information(confident) == pytest.approx(np.log(3), abs=1e-5)
    assert information(uniform) == pytest.approx(0, abs=1e-6)
    assert information(constant) == pytest.approx(0, abs=1e-6)  # a constant prediction carries no information
