"""Maps are compared with masks, with the floor and the majority class: counted by hand and by scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from clipit.errors import DataError
from clipit.evaluation.map_agreement import compare_with_mask, majority_tiles, score_map
from clipit.slides.grid import SlideGrid


def grid(x: list[int], y: list[int], edge: int, step: float) -> SlideGrid:
    places = [np.array(values, dtype=np.int32) for values in (x, y)]
    return SlideGrid("a", 4, 4, 1.0, edge, step, *places, np.ones(len(x), np.float32))


def test_a_map_of_four_by_four_pixels_is_counted_by_hand() -> None:
    truth = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1], [-1, -1, 1, 1]])
    mapped = np.array([[0, 0, 1, 1], [0, 1, 1, 0], [-1, 1, 1, 1], [0, 0, 1, 1]])
    found = score_map(mapped, truth, 2)
    # Class 0: three of five right, one mapped as 1, one without a tile; class 1: eight of nine right.
    assert found.counts.tolist() == [[3, 1, 1], [1, 8, 0]]
    assert found.accuracy == pytest.approx(11 / 14)
    assert found.dice.tolist() == pytest.approx([2 * 3 / (5 + 4), 2 * 8 / (9 + 9)])
    assert found.plus(found).accuracy == pytest.approx(found.accuracy)


def test_figures_equal_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, mapped = rng.integers(0, 4, (2, 30, 20))
    found = score_map(mapped, truth, 4)
    assert found.accuracy == pytest.approx(accuracy_score(truth.ravel(), mapped.ravel()))
    assert found.dice.tolist() == pytest.approx(f1_score(truth.ravel(), mapped.ravel(), average=None).tolist())


def test_a_class_that_the_mask_lacks_has_no_dice() -> None:
    found = score_map(np.zeros((2, 2), int), np.zeros((2, 2), int), 2)
    assert found.dice[0] == 1 and np.isnan(found.dice[1]) and found.mean_dice == 1


def test_the_majority_answers_per_tile_and_the_floor_is_one_class() -> None:
    truth = np.array([[0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 1]])
    four = grid([0, 2, 0, 2], [0, 0, 2, 2], 2, 2.0)
    assert majority_tiles(four, truth, 2, 1.0).argmax(axis=1).tolist() == [0, 1, 1, 1]
    scores = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    found = compare_with_mask(four, scores, truth, 1.0)
    assert found["floor"].accuracy == pytest.approx(12 / 16)
    assert found["majority"].accuracy == pytest.approx(14 / 16)
    assert found["map"].accuracy == pytest.approx(10 / 16)


def test_a_mask_without_classes_is_refused() -> None:
    with pytest.raises(DataError, match="no labelled pixel"):
        score_map(np.zeros((2, 2), int), np.full((2, 2), -1), 2)
