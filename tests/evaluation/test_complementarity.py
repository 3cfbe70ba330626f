"""R against counting by hand, its expectation under independence, and its interval."""

import numpy as np
import pytest
from evaluation_worlds import predictions_of

from clipit.errors import DataError
from clipit.evaluation.complementarity import complementarity
from clipit.evaluation.predictions import Predictions


def hits(predictions: Predictions) -> dict[str, bool]:
    found = predictions.probabilities.argmax(axis=1) == predictions.labels
    return dict(zip(predictions.ids.tolist(), found.tolist(), strict=True))


def test_counts_equal_a_loop_over_ids() -> None:
    vision, other = predictions_of(80, 3, seed=1), predictions_of(80, 3, seed=2, skill=0.5)
    found = complementarity(vision, other, 100)
    first, second = hits(vision), hits(other)
    rescued = [tile for tile in first if second[tile] and not first[tile]]
    assert found.only_other == len(rescued)
    assert found.neither == sum(not first[tile] and not second[tile] for tile in first)
    assert found.tiles == 80
    assert found.share == len(rescued) / 80
    assert found.of_wrong == len(rescued) / sum(not right for right in first.values())
    accuracies = np.mean(list(first.values())), np.mean(list(second.values()))
    assert found.expected == pytest.approx((1 - accuracies[0]) * accuracies[1])
    interval = found.intervals["share"]
    assert interval.low < found.share < interval.high


def test_independent_errors_have_no_excess_and_the_interval_says_so() -> None:
    vision, other = predictions_of(4000, 2, seed=3), predictions_of(4000, 2, seed=4)
    found = complementarity(vision, other, 300)
    assert found.only_other > 300, "two classifiers that know nothing of each other have a large R"
    assert found.intervals["excess"].low < 0 < found.intervals["excess"].high
    assert abs(found.excess) < 0.02
    twin = complementarity(vision, vision, 50)
    assert twin.only_other == 0
    assert twin.intervals["excess"].high < 0, "errors that agree stay below independence"


def test_unlabelled_tiles_are_left_out_and_perfect_vision_has_no_share_of_wrong() -> None:
    vision = predictions_of(30, 2, seed=1, skill=50.0)
    labels = np.where(vision.ids < "t0010", -1, vision.labels).astype(np.int64)
    partly = Predictions(vision.ids, vision.splits, labels, vision.groups, vision.classes, vision.probabilities)
    found = complementarity(partly, partly, 20)
    assert found.tiles == 20
    assert found.of_wrong is None
    assert found.intervals["of_wrong"].low is None


def test_other_tiles_and_splits_are_refused() -> None:
    vision = predictions_of(30, 2, seed=1)
    with pytest.raises(DataError, match="cover different tiles"):
        complementarity(vision, predictions_of(31, 2, seed=1))
    with pytest.raises(DataError, match="several splits"):
        complementarity(vision, predictions_of(30, 2, seed=2, split="train"))
    with pytest.raises(DataError, match="differ in their groups"):
        complementarity(vision, predictions_of(30, 2, seed=2, groups=3))
    nobody = Predictions(
        vision.ids, vision.splits, np.full(30, -1, dtype=np.int64), vision.groups, vision.classes, vision.probabilities
    )
    with pytest.raises(DataError, match="none of the predicted tiles has a label"):
        complementarity(nobody, nobody)
