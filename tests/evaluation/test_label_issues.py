"""Tests of label issue detection on flipped labels with known truth."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from clipit.errors import DataError, ModelError
from clipit.evaluation.features import Features
from clipit.evaluation.label_issues import (
    LabelIssues,
    find_label_issues,
    out_of_fold_probabilities,
    rank_issues,
    score_ranking,
)
from clipit.evaluation.probes import linear_probe


def clusters(n: int = 240, classes: int = 3, size: int = 4) -> Features:
    """Features of overlapping class clusters with `size` tiles per group."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    vectors = rng.normal(size=(n, 6)) + 4 * np.eye(6)[labels]
    groups = np.array([f"P{row // (size * classes)}-{row % classes}" for row in range(n)])
    return Features(np.array([f"t{row:03d}" for row in range(n)]), vectors, labels.astype(np.int64), groups)


def flip_labels(features: Features, share: float = 0.1) -> tuple[Features, np.ndarray]:
    """Replace some labels by the next class; return the features and a mask of the wrong labels."""
    wrong = np.random.default_rng(1).random(len(features)) < share
    return replace(features, labels=np.where(wrong, (features.labels + 1) % 3, features.labels)), wrong


def test_flipped_labels_are_flagged_and_corrected() -> None:
    truth = clusters()
    features, wrong = flip_labels(truth)
    out_of_fold = out_of_fold_probabilities(features, 3)
    issues = find_label_issues(features.labels, out_of_fold.probabilities)
    assert out_of_fold.checked.all()
    scores = score_ranking(wrong, issues.flagged, issues.quality, features.groups, resamples=50)
    assert scores["share of wrong labels"].value == pytest.approx(wrong.mean())
    assert scores["precision of the flagged labels"].value == pytest.approx(wrong[issues.flagged].mean())
    assert scores["recall of the wrong labels"].value == pytest.approx(issues.flagged[wrong].mean())
    assert issues.flagged[wrong].mean() > 0.8 and wrong[issues.flagged].mean() > 0.6
    assert (scores["AUROC of the ranking"].interval.low or 0) > 0.9
    assert (issues.suggested[wrong & issues.flagged] == truth.labels[wrong & issues.flagged]).mean() > 0.9
    assert (issues.suggested[issues.flagged] != features.labels[issues.flagged]).all()
    assert np.abs(issues.wrong - 0.1).max() < 0.08


def test_predictions_do_not_use_labels_of_the_same_group() -> None:
    features = clusters()
    out_of_fold = out_of_fold_probabilities(features, 3)
    for group in np.unique(features.groups):
        assert len(np.unique(out_of_fold.folds[features.groups == group])) == 1
    inside = out_of_fold.folds == out_of_fold.folds[0]
    rest = features.take(~inside)
    inverse_penalty = out_of_fold.inverse_penalties[out_of_fold.folds[0]]
    probe = linear_probe(rest.vectors, rest.labels, rest.vectors[:0], rest.labels[:0], 3, (inverse_penalty,))
    assert np.allclose(out_of_fold.probabilities[inside], probe.probabilities(features.vectors[inside]), atol=1e-5)


def test_tile_order_does_not_matter() -> None:
    features = clusters(120)
    order = np.random.default_rng(3).permutation(120)
    first, second = out_of_fold_probabilities(features, 3), out_of_fold_probabilities(features.take(order), 3)
    assert (first.probabilities[order] == second.probabilities).all() and (first.folds[order] == second.folds).all()


def test_more_folds_than_tiles_of_every_class_are_an_error() -> None:
    features = clusters(120)
    few = features.take(np.concatenate([np.flatnonzero(features.labels == label)[:4] for label in range(3)]))
    alone = replace(few, groups=few.ids)
    with pytest.raises(DataError, match=r"every class has fewer than 5 labelled tiles \(the largest has 4\)") as caught:
        out_of_fold_probabilities(alone, 5)
    assert caught.value.fix == "label more tiles, or use 4 folds"


def test_class_of_a_single_patient_is_not_checked() -> None:
    features = clusters(120)
    lonely = features.groups == features.groups[0]
    features = replace(features, labels=np.where(lonely, 3, features.labels))
    out_of_fold = out_of_fold_probabilities(features, 5)  # a class without tiles is not an error
    assert (out_of_fold.checked == ~lonely).all()
    kept = out_of_fold.checked
    issues = find_label_issues(features.labels[kept], out_of_fold.probabilities[kept])
    assert np.isnan(issues.wrong).tolist() == [False, False, False, True, True]
    assert set(np.unique(issues.suggested)) <= {0, 1, 2}


def test_invalid_inputs_and_missing_package_raise_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    features = clusters(48)
    few = replace(features, groups=np.where(np.arange(48) % 2 == 0, "a", "b"))
    with pytest.raises(DataError, match=r"2 labelled groups .* into 5 folds"):
        out_of_fold_probabilities(few, 3)
    with pytest.raises(DataError, match="the same label"):
        find_label_issues(np.zeros(4, dtype=np.int64), np.full((4, 2), 0.5))
    monkeypatch.setitem(sys.modules, "cleanlab.count", None)
    with pytest.raises(ModelError, match="pip install cleanlab"):
        find_label_issues(np.array([0, 1]), np.full((2, 2), 0.5))


def test_ranking_starts_with_flagged_labels_and_breaks_ties_by_id() -> None:
    issues = LabelIssues(
        np.array([False, True, True, True]), np.array([0.01, 0.2, 0.1, 0.1]), np.zeros(4, dtype=np.int64), np.zeros(1)
    )
    assert rank_issues(issues, np.array(["a", "b", "d", "c"])).tolist() == [3, 2, 1, 0]
