"""Tests of the agreement of report labels, which may lie outside the classes, with reference labels."""

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from clipit.evaluation.report_agreement import measure_agreement


def test_scores_match_scikit_learn_with_other_predictions_as_errors() -> None:
    generator = np.random.default_rng(0)
    classes = ["a", "b", "c"]
    labels = generator.integers(-1, 3, 200)
    predictions = [str(name) for name in generator.choice([*classes, "both", "none"], 200)]
    agreement = measure_agreement("t", labels, predictions, classes, np.arange(200).astype(str), resamples=50)
    known = labels >= 0
    truth = [classes[number] for number in labels[known]]
    predicted = [name for name, kept in zip(predictions, known, strict=True) if kept]
    assert agreement.scores["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    expected = f1_score(truth, predicted, labels=classes, average="macro")
    assert agreement.scores["macro_f1"] == pytest.approx(expected)
    covered = [name in classes for name in predicted]
    assert agreement.scores["coverage"] == pytest.approx(np.mean(covered))
    right = [a == b for a, b, kept in zip(truth, predicted, covered, strict=True) if kept]
    assert agreement.scores["covered_accuracy"] == pytest.approx(np.mean(right))
    assert agreement.predictions == ("a", "b", "c", "both", "none")
    assert agreement.counts.sum() == known.sum() == agreement.groups
    assert agreement.most_frequent == pytest.approx(np.bincount(labels[known]).max() / known.sum())
    for name, value in agreement.scores.items():
        interval = agreement.intervals[name]
        assert value is not None and interval.low is not None and interval.high is not None
        assert interval.low < value < interval.high


def test_whole_groups_are_resampled() -> None:
    labels = np.array([0, 1] * 50)
    predictions = ["a", "b"] * 40 + ["none"] * 20
    narrow = measure_agreement("t", labels, predictions, ["a", "b"], np.full(100, "")).intervals["accuracy"]
    few = np.repeat([f"g{i}" for i in range(10)], 10)
    agreement = measure_agreement("t", labels, predictions, ["a", "b"], few)
    wide = agreement.intervals["accuracy"]
    assert agreement.groups == 10
    assert wide.low is not None and wide.high is not None and narrow.low is not None and narrow.high is not None
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_agreement_without_predictions_can_be_written_as_json() -> None:
    labels = np.array([0, 1, 0, 1])
    agreement = measure_agreement("t", labels, ["none"] * 4, ["a", "b"], np.array(["p", "q", "r", "s"]))
    assert agreement.scores["accuracy"] == 0
    assert agreement.scores["covered_accuracy"] is None
    written = json.loads(json.dumps(agreement.as_dict(), allow_nan=False))
    assert written["counts"] == [[0, 0, 2], [0, 0, 2]]
    assert written["scores"]["covered_accuracy"] == {"value": None, "low": None, "high": None}
