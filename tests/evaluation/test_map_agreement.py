"""Tests of the agreement of prediction maps with masks."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from clipit.errors import DataError
from clipit.evaluation.map_agreement import compare_with_mask, majority_tiles, score_map
from clipit.slides.grid import SlideGrid


def grid(x: list[int], y: list[int], edge: int, step: float) -> SlideGrid:
    places = [np.array(values, dtype=np.int32) for values in (x, y)]
    return SlideGrid("a", 4, 4, 1.0, edge, step, *places, np.ones(len(x), np.float32))


def test_scores_of_a_small_map() -> None:
    truth = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1], [-1, -1, 1, 1]])
    mapped = np.array([[0, 0, 1, 1], [0, 1, 1, 0], [-1, 1, 1, 1], [0, 0, 1, 1]])
    agreement = score_map(mapped, truth, 2)
    # Class 0: three of five pixels correct, one mapped to 1, one without a tile; class 1: eight of nine correct.
    assert agreement.counts.tolist() == [[3, 1, 1], [1, 8, 0]]
    assert agreement.accuracy == pytest.approx(11 / 14)
    assert agreement.dice.tolist() == pytest.approx([2 * 3 / (5 + 4), 2 * 8 / (9 + 9)])
    assert agreement.plus(agreement).accuracy == pytest.approx(agreement.accuracy)


def test_scores_match_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, mapped = rng.integers(0, 4, (2, 30, 20))
    agreement = score_map(mapped, truth, 4)
    assert agreement.accuracy == pytest.approx(accuracy_score(truth.ravel(), mapped.ravel()))
    assert agreement.dice.tolist() == pytest.approx(f1_score(truth.ravel(), mapped.ravel(), average=None).tolist())


def test_class_absent_from_map_and_mask_has_no_dice() -> None:
    agreement = score_map(np.zeros((2, 2), int), np.zeros((2, 2), int), 2)
    assert agreement.dice[0] == 1 and np.isnan(agreement.dice[1]) and agreement.mean_dice == 1


def test_majority_and_floor_references() -> None:
    truth = np.array([[0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 1]])
    four = grid([0, 2, 0, 2], [0, 0, 2, 2], 2, 2.0)
    assert majority_tiles(four, truth, 2, 1.0).argmax(axis=1).tolist() == [0, 1, 1, 1]
    scores = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    agreement = compare_with_mask(four, scores, truth, 1.0)
    assert agreement["floor"].accuracy == pytest.approx(12 / 16)
    assert agreement["majority"].accuracy == pytest.approx(14 / 16)
    assert agreement["map"].accuracy == pytest.approx(10 / 16)


def test_mask_without_labelled_pixels_raises_an_error() -> None:
    with pytest.raises(DataError, match="no labelled pixel"):
        score_map(np.zeros((2, 2), int), np.full((2, 2), -1), 2)
