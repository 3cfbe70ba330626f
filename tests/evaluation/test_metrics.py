"""Tests of metrics against scikit-learn and torchmetrics, and of weights against repeated tiles."""

import tracemalloc
from functools import partial

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.classification import MulticlassCalibrationError

from clipit.evaluation import metrics
from clipit.evaluation.predictions import softmax
from clipit.reporting.plots import plot_confusion


def sample_predictions(n: int, n_classes: int, seed: int = 0, gain: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.choice(n_classes, n, p=np.arange(1, n_classes + 1) / (n_classes * (n_classes + 1) / 2))
    logits = generator.normal(size=(n, n_classes))
    logits[np.arange(n), labels] += gain
    # rounded logits give ties
    return labels.astype(np.int64), softmax(np.round(logits, 1))


@pytest.mark.parametrize("n_classes", [2, 3, 9])
def test_metrics_match_scikit_learn_and_torchmetrics(n_classes: int) -> None:
    labels, probabilities = sample_predictions(700, n_classes)
    predicted = probabilities.argmax(axis=1)
    ours = metrics.compute_metrics(labels, probabilities)
    if n_classes == 2:
        auroc = sk.roc_auc_score(labels, probabilities[:, 1])
    else:  # one class at a time: scikit-learn's multi-class AUROC requires rows that sum to 1 in float64
        auroc = np.mean([sk.roc_auc_score(labels == c, probabilities[:, c]) for c in range(n_classes)])
    ece = MulticlassCalibrationError(n_classes, n_bins=15, norm="l1")
    theirs = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "macro_f1": sk.f1_score(labels, predicted, average="macro"),
        "weighted_f1": sk.f1_score(labels, predicted, average="weighted"),
        "auroc": auroc,
        "kappa": sk.cohen_kappa_score(labels, predicted),
        "ece": ece(torch.from_numpy(probabilities), torch.from_numpy(labels)).item(),
    }
    assert list(ours) == list(metrics.METRICS)
    assert ours == pytest.approx(theirs, abs=1e-6)
    confusion = metrics.confusion_matrix(labels, predicted, n_classes)
    np.testing.assert_array_equal(confusion, sk.confusion_matrix(labels, predicted, labels=range(n_classes)))
    rows = metrics.class_table(confusion, tuple("abcdefghi"[:n_classes]))
    expected = sk.precision_recall_fscore_support(labels, predicted)
    for key, column in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert [row[key] for row in rows] == pytest.approx(list(column))


def test_weights_equal_repeated_tiles() -> None:
    labels, probabilities = sample_predictions(120, 4)
    weights = np.random.default_rng(1).integers(0, 4, size=(120, 3))
    weighted = metrics.weighted_scores(labels, probabilities, weights.astype(np.float64))
    for r in range(3):
        rows = np.repeat(np.arange(120), weights[:, r])
        repeated = metrics.compute_metrics(labels[rows], probabilities[rows])
        assert {name: values[r] for name, values in weighted.items()} == pytest.approx(repeated, abs=1e-9)


def test_class_without_tiles() -> None:
    labels, probabilities = sample_predictions(300, 4)
    keep = labels != 2
    labels, probabilities = labels[keep], probabilities[keep]
    ours = metrics.compute_metrics(labels, probabilities)
    assert ours["auroc"] is None
    assert "no tile of class c" in metrics.explain_undefined("auroc", labels, ("a", "b", "c", "d"))
    present = sk.recall_score(labels, probabilities.argmax(1), average=None, labels=[0, 1, 3])
    assert ours["balanced_accuracy"] == pytest.approx(np.mean(present))
    over_present = metrics.compute_metrics(labels, probabilities, present_only=True)
    assert over_present["balanced_accuracy"] == ours["balanced_accuracy"]
    f1 = sk.f1_score(labels, probabilities.argmax(1), average=None, labels=[0, 1, 3])
    assert 2 in probabilities.argmax(1), "the absent class must be predicted"
    assert ours["macro_f1"] == over_present["macro_f1"] == pytest.approx(np.mean(f1))
    describe = partial(metrics.describe_averaging, labels=labels, classes=("a", "b", "c", "d"))
    assert describe("macro_f1") == describe("balanced_accuracy") == "over 3 of 4 classes; no tile of c"
    areas = [sk.roc_auc_score(labels == c, probabilities[:, c]) for c in (0, 1, 3)]
    assert over_present["auroc"] == pytest.approx(np.mean(areas))


def test_undefined_metrics() -> None:
    empty = metrics.compute_metrics(np.zeros(0, np.int64), np.zeros((0, 3), np.float32))
    assert set(empty.values()) == {None}
    certain = metrics.compute_metrics(np.zeros(5, np.int64), np.tile(np.float32([1, 0]), (5, 1)))
    assert certain["accuracy"] == 1.0 and certain["kappa"] is None and certain["auroc"] is None


def test_reliability_bins_sum_to_the_calibration_error() -> None:
    labels, probabilities = sample_predictions(500, 3)
    bins = metrics.reliability_bins(labels, probabilities)
    assert sum(b["n"] for b in bins) == 500
    error = sum(b["n"] / 500 * abs(b["accuracy"] - b["confidence"]) for b in bins if b["n"])
    assert error == pytest.approx(metrics.compute_metrics(labels, probabilities)["ece"], abs=1e-9)
    confident = metrics.reliability_bins(np.zeros(2, np.int64), np.float32([[1, 0], [1, 0]]))
    assert confident[-1]["n"] == 2


def test_memory_is_bounded_for_many_classes() -> None:
    n = 800
    labels = np.arange(n, dtype=np.int64)
    probabilities = softmax(np.random.default_rng(0).normal(size=(n, n)))
    weights = np.random.default_rng(1).integers(0, 3, (n, 50)).astype(np.float64)
    tracemalloc.start()
    try:
        scores = metrics.weighted_scores(labels, probabilities, weights)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30e6  # the probabilities take 2.6 MB; one matrix per weighting would take 256 MB
    assert scores["accuracy"] == pytest.approx(
        (weights * (probabilities.argmax(1) == labels)[:, None]).sum(0) / weights.sum(0)
    )


def test_size_of_the_confusion_plot_is_bounded_for_many_classes() -> None:
    figure = plot_confusion(np.eye(200, dtype=int).tolist(), [f"class {c}" for c in range(200)])
    assert max(figure.get_size_inches()) < 30
    axes = figure.axes[0]
    assert not axes.texts and [tick.get_text() for tick in axes.get_xticklabels()][:2] == ["class 0", "class 5"]
