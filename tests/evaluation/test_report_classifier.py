"""Tests of the cross-fitted text classifier of reports."""

import numpy as np
import pytest
from jaxtyping import Float, Int64, Shaped

from clipit.errors import DataError
from clipit.evaluation.calibration import weighted_calibration
from clipit.evaluation.report_classifier import CrossFitted, cross_fitted_probabilities

SIGNS = ("stable proficient", "unstable deficient", "mixed")


def corpus(
    n: int = 120, wrong: float = 0.15, classes: int = 2, seed: int = 0
) -> tuple[list[str], Int64[np.ndarray, " n"], Shaped[np.ndarray, " n"]]:
    """Two reports for each of n / 2 patients; a share `wrong` of the texts is drawn from a random class."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(generator.integers(0, classes, n // 2), 2)
    text_classes = np.where(generator.random(n) < wrong, generator.integers(0, classes, n), labels)
    filler = [f"word{generator.integers(0, 40)}" for _ in range(n)]
    texts = [f"Carcinoma {SIGNS[c]} {word}." for c, word in zip(text_classes.tolist(), filler, strict=True)]
    groups = np.array([f"patient-{i // 2:03d}" for i in range(n)])
    return texts, labels.astype(np.int64), groups


def vectors(texts: list[str]) -> Float[np.ndarray, "n d"]:
    """Noisy embeddings of the texts' class words."""
    generator = np.random.default_rng(5)
    signs = np.array([[sign.split()[0] in text.split() for sign in SIGNS] for text in texts], dtype=np.float64)
    return signs @ generator.normal(size=(3, 16)) + 0.3 * generator.normal(size=(len(texts), 16))


def accuracy(fitted: CrossFitted, labels: Int64[np.ndarray, " n"]) -> float:
    known = labels >= 0
    return float((fitted.probabilities.argmax(axis=1) == labels)[known].mean())


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("embedded", [False, True], ids=["tfidf", "embeddings"])
def test_classifier_learns_the_words_of_the_reports(classes: int, embedded: bool) -> None:
    texts, labels, groups = corpus(classes=classes)
    fitted = cross_fitted_probabilities(vectors(texts) if embedded else texts, labels, groups, classes)
    assert fitted.probabilities.shape == (len(texts), classes)
    assert np.allclose(fitted.probabilities.sum(axis=1), 1, atol=1e-5)
    assert accuracy(fitted, labels) > 0.8
    assert sorted(set(fitted.folds.tolist())) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("embedded", [False, True], ids=["tfidf", "embeddings"])
def test_predictions_do_not_depend_on_labels_of_the_same_group(embedded: bool) -> None:
    texts, labels, groups = corpus()
    documents = vectors(texts) if embedded else texts
    before = cross_fitted_probabilities(documents, labels, groups, 2)
    in_group = groups == "patient-007"
    flipped = np.where(in_group, 1 - labels, labels)
    after = cross_fitted_probabilities(documents, flipped, groups, 2)
    assert (before.probabilities[in_group] == after.probabilities[in_group]).all()
    same_fold = before.folds == before.folds[in_group][0]
    assert (before.probabilities[same_fold] == after.probabilities[same_fold]).all()
    assert (before.probabilities[~same_fold] != after.probabilities[~same_fold]).any()


def test_groups_are_not_split_across_folds() -> None:
    texts, labels, groups = corpus()
    folds = cross_fitted_probabilities(texts, labels, groups, 2).folds
    assert all(len(set(folds[groups == group].tolist())) == 1 for group in set(groups.tolist()))
    ungrouped = cross_fitted_probabilities(texts, labels, np.full(len(texts), ""), 2)
    assert len(set(ungrouped.folds.tolist())) == 5


def test_unlabelled_reports_are_predicted_by_the_fold_of_their_group_or_all_models() -> None:
    texts, labels, groups = corpus()
    hidden = labels.copy()
    hidden[1] = -1  # the first patient's other report keeps its label
    hidden[-20:] = -1
    fitted = cross_fitted_probabilities(texts, hidden, groups, 2)
    assert fitted.folds[0] == fitted.folds[1] >= 0
    assert (fitted.folds[-20:] == -1).all()
    assert (fitted.folds[1:-20] >= 0).all()
    assert accuracy(fitted, np.where(hidden < 0, labels, -1)) > 0.8
    assert np.allclose(fitted.probabilities.sum(axis=1), 1, atol=1e-5)


def test_unlabelled_report_does_not_change_other_predictions() -> None:
    texts, labels, groups = corpus()
    more = cross_fitted_probabilities(
        [*texts, "Entirely other words"], np.append(labels, -1), np.append(groups, "patient-999"), 2
    )
    assert np.allclose(more.probabilities[:-1], cross_fitted_probabilities(texts, labels, groups, 2).probabilities)


def test_temperatures_calibrate_probabilities() -> None:
    texts, labels, groups = corpus(n=600, wrong=0.4)
    weak = cross_fitted_probabilities(texts, labels, groups, 2, inverse_penalties=[1000.0])
    assert len(weak.temperatures) == 5
    assert weak.temperature > 2  # weak regularisation makes predictions overconfident
    fitted = cross_fitted_probabilities(texts, labels, groups, 2)
    assert fitted.note == ""
    measures = weighted_calibration(labels, fitted.probabilities, np.ones((len(labels), 1)))
    assert measures["ece"][0] < 0.08
    assert measures["nll"][0] < weighted_calibration(labels, weak.probabilities, np.ones((len(labels), 1)))["nll"][0]


def test_penalty_is_chosen_by_the_log_loss_on_other_folds() -> None:
    texts, labels, groups = corpus(n=600, wrong=0.4)
    fitted = cross_fitted_probabilities(texts, labels, groups, 2, inverse_penalties=[1e-4, 1.0, 1000.0])
    assert fitted.inverse_penalties == (1.0,) * 5


def test_predictions_are_deterministic() -> None:
    texts, labels, groups = corpus()
    first = cross_fitted_probabilities(texts, labels, groups, 2, seed=1)
    second = cross_fitted_probabilities(texts, labels, groups, 2, seed=1)
    other = cross_fitted_probabilities(texts, labels, groups, 2, seed=2)
    assert (first.probabilities == second.probabilities).all()
    assert first.temperatures == second.temperatures
    assert (first.folds != other.folds).any()


def test_temperature_is_one_without_enough_labels() -> None:
    texts, labels, groups = corpus(n=16)
    fitted = cross_fitted_probabilities(texts, labels, groups, 2)
    assert fitted.temperatures == (1.0,) * 5
    assert "5 of 5 folds are not calibrated" in fitted.note


def test_class_absent_from_training_folds_has_no_probability() -> None:
    texts = ["stable proficient", "stable proficient", "unstable deficient", "mixed"]
    labels = np.array([0, 0, 1, 2])
    fitted = cross_fitted_probabilities(texts, labels, np.array(["a", "b", "c", "d"]), 3, folds=4)
    assert fitted.probabilities[3, 2] < 1e-6
    assert fitted.probabilities[0].argmax() == 0
    two = cross_fitted_probabilities(texts[1:3], labels[1:3], np.array(["a", "b"]), 3)
    assert np.allclose(two.probabilities, [[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]])


@pytest.mark.parametrize(
    ("labels", "groups", "expected"),
    [
        ([0, 0, 0], ["a", "b", "c"], "1 class and 3 groups"),
        ([0, 1, -1], ["a", "a", "b"], "2 classes and 1 group"),
        ([-1, -1, -1], ["a", "b", "c"], "0 classes and 0 groups"),
    ],
)
def test_fewer_than_two_classes_or_groups_raise_an_error(labels: list[int], groups: list[str], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        cross_fitted_probabilities(["a", "b", "c"], np.array(labels), np.array(groups), 2)


def test_texts_without_words_and_non_finite_embeddings_raise_an_error() -> None:
    labels, groups = np.array([0, 1]), np.array(["a", "b"])
    with pytest.raises(DataError, match="no words"):
        cross_fitted_probabilities(["?", "!"], labels, groups, 2)
    with pytest.raises(DataError, match="not finite"):
        cross_fitted_probabilities(np.array([[1.0], [np.nan]]), labels, groups, 2)
