"""Tests of complementarity: counts, the value expected under independence, and intervals."""

import numpy as np
import pytest
from evaluation_worlds import predictions_of

from clipit.errors import DataError
from clipit.evaluation.complementarity import complementarity
from clipit.evaluation.predictions import Predictions


def is_correct_by_id(predictions: Predictions) -> dict[str, bool]:
    correct = predictions.probabilities.argmax(axis=1) == predictions.labels
    return dict(zip(predictions.ids.tolist(), correct.tolist(), strict=True))


def test_counts_match_a_loop_over_ids() -> None:
    vision, other = predictions_of(80, 3, seed=1), predictions_of(80, 3, seed=2, skill=0.5)
    result = complementarity(vision, other, 100)
    first, second = is_correct_by_id(vision), is_correct_by_id(other)
    rescued = [tile for tile in first if second[tile] and not first[tile]]
    assert result.only_other == len(rescued)
    assert result.neither == sum(not first[tile] and not second[tile] for tile in first)
    assert result.tiles == 80
    assert result.share == len(rescued) / 80
    assert result.of_wrong == len(rescued) / sum(not right for right in first.values())
    accuracies = np.mean(list(first.values())), np.mean(list(second.values()))
    assert result.expected == pytest.approx((1 - accuracies[0]) * accuracies[1])
    interval = result.intervals["share"]
    assert interval.low < result.share < interval.high


def test_independent_errors_have_no_excess() -> None:
    vision, other = predictions_of(4000, 2, seed=3), predictions_of(4000, 2, seed=4)
    result = complementarity(vision, other, 300)
    assert result.only_other > 300, "R is large even for independent classifiers"
    assert result.intervals["excess"].low < 0 < result.intervals["excess"].high
    assert abs(result.excess) < 0.02
    identical = complementarity(vision, vision, 50)
    assert identical.only_other == 0
    assert identical.intervals["excess"].high < 0, "identical errors have a negative excess"


def test_unlabelled_tiles_are_dropped_and_perfect_vision_has_no_share_of_errors() -> None:
    vision = predictions_of(30, 2, seed=1, skill=50.0)
    labels = np.where(vision.ids < "t0010", -1, vision.labels).astype(np.int64)
    partially_labelled = Predictions(
        vision.ids, vision.splits, labels, vision.groups, vision.classes, vision.probabilities
    )
    result = complementarity(partially_labelled, partially_labelled, 20)
    assert result.tiles == 20
    assert result.of_wrong is None
    assert result.intervals["of_wrong"].low is None


def test_incompatible_predictions_raise_an_error() -> None:
    vision = predictions_of(30, 2, seed=1)
    with pytest.raises(DataError, match="cover different tiles"):
        complementarity(vision, predictions_of(31, 2, seed=1))
    with pytest.raises(DataError, match="several splits"):
        complementarity(vision, predictions_of(30, 2, seed=2, split="train"))
    with pytest.raises(DataError, match="differ in their groups"):
        complementarity(vision, predictions_of(30, 2, seed=2, groups=3))
    unlabelled = Predictions(
        vision.ids, vision.splits, np.full(30, -1, dtype=np.int64), vision.groups, vision.classes, vision.probabilities
    )
    with pytest.raises(DataError, match="none of the predicted tiles has a label"):
        complementarity(unlabelled, unlabelled)
