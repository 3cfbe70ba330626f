"""Tests of segmentation scores and reference masks."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_jaccard_index

from clipit.evaluation.mask_references import all_one_class, best_dice_tiles, haematoxylin_mask, majority_class
from clipit.evaluation.segmentation_scores import (
    FALSE_AREA,
    MEAN,
    count_pixels,
    foreground_dice,
    mask_scores,
    score_masks,
)

TRUTH = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1], [-1, -1, 1, 1]])
PREDICTED = np.array([[0, 0, 1, 1], [0, 1, 1, 0], [0, 1, 1, 1], [0, 1, 1, 1]])


def test_scores_of_a_small_mask() -> None:
    counts = count_pixels(PREDICTED, TRUTH, 2)
    # Of 5 pixels of class 0, one is predicted as 1; of 9 of class 1, one is predicted as 0; 2 are ignored.
    assert counts.tolist() == [[4, 1], [1, 8]]
    scores = mask_scores(counts)
    assert scores["dice"].tolist() == pytest.approx([8 / 10, 16 / 18])
    assert scores["iou"].tolist() == pytest.approx([4 / 6, 8 / 10])
    assert scores["precision"].tolist() == pytest.approx([4 / 5, 8 / 9])
    assert scores["recall"].tolist() == pytest.approx([4 / 5, 8 / 9])


def test_scores_match_scikit_learn_and_torchmetrics() -> None:
    truth, predicted = np.random.default_rng(0).integers(0, 3, (2, 40, 25))
    scores = mask_scores(count_pixels(predicted, truth, 3))
    pairs = {"dice": f1_score, "iou": jaccard_score, "precision": precision_score, "recall": recall_score}
    for name, function in pairs.items():
        assert scores[name].tolist() == pytest.approx(list(function(truth.ravel(), predicted.ravel(), average=None)))
    ignored = truth.copy()
    ignored[:10] = -1
    tensors = torch.from_numpy(predicted.ravel()), torch.from_numpy(ignored.ravel())
    scores = mask_scores(count_pixels(predicted, ignored, 3))
    keys = {"num_classes": 3, "average": "none", "ignore_index": -1}
    assert scores["iou"].tolist() == pytest.approx(multiclass_jaccard_index(*tensors, **keys).tolist(), abs=1e-6)
    assert scores["dice"].tolist() == pytest.approx(multiclass_f1_score(*tensors, **keys).tolist(), abs=1e-6)


def test_class_that_is_neither_present_nor_predicted_has_no_score() -> None:
    scores = mask_scores(np.array([[4, 0], [0, 0]]))
    assert scores["dice"][0] == 1 and np.isnan([values[1] for values in scores.values()]).all()
    missed = mask_scores(np.array([[3, 0], [1, 0]]))
    assert missed["dice"][1] == 0 and missed["recall"][1] == 0 and np.isnan(missed["precision"][1])


def test_scores_are_averaged_over_images_or_pooled_over_pixels() -> None:
    counts = np.array([[[1, 1], [0, 2]], [[8, 0], [0, 0]], [[0, 0], [4, 4]]])
    rows = {(r.metric, r.class_name, r.averaging): r for r in score_masks(counts, np.array(["a", "b", "c"]), "xy", "y")}
    # The second image has no pixel of y in the truth or the prediction, so its score is undefined.
    images = rows["dice", "y", "images"]
    assert images.value == pytest.approx((4 / 5 + 8 / 12) / 2) and images.images == 2
    assert np.isnan(foreground_dice(counts, [1])[1])
    assert rows["dice", "y", "pixels"].value == pytest.approx(2 * 6 / (10 + 7))
    assert rows["dice", MEAN, "images"].value == images.value
    assert images.low is None and "3 independent units" in images.reason
    assert foreground_dice(counts, [1])[[0, 2]].tolist() == pytest.approx([4 / 5, 8 / 12])


def test_false_foreground_is_scored_separately() -> None:
    # One image with two pixels of y and two images without y, in which `careful` predicts no y.
    careful = np.array([[[1, 1], [0, 2]], [[4, 0], [0, 0]], [[16, 0], [0, 0]]])
    eager = np.array([[[1, 1], [0, 2]], [[3, 1], [0, 0]], [[8, 8], [0, 0]]])
    blind = np.array([[[2, 0], [2, 0]], [[4, 0], [0, 0]], [[16, 0], [0, 0]]])
    expected = {
        "careful": (0.8, 0, 0, 2 / 3),
        "eager": (0.8, (1 / 4 + 1 / 2) / 2, 9 / 20, 2 / 3),
        "blind": (0, 0, 0, 0),
    }
    for counts, (dice, images, pixels, precision) in zip((careful, eager, blind), expected.values(), strict=True):
        rows = {
            (r.metric, r.averaging): r for r in score_masks(counts, np.array(["a", "b", "c"]), "xy", "y")
            if r.class_name == MEAN
        }  # fmt: skip
        assert rows["dice", "images"].value == pytest.approx(dice) and rows["dice", "images"].images == 1
        assert rows["precision", "images"].value == pytest.approx(precision)
        assert rows[FALSE_AREA, "images"].value == pytest.approx(images) and rows[FALSE_AREA, "images"].images == 2
        assert rows[FALSE_AREA, "pixels"].value == pytest.approx(pixels)


def test_intervals_resample_patients_instead_of_images() -> None:
    rng = np.random.default_rng(0)
    each = rng.integers(1, 50, (12, 2, 2))
    groups = np.array([f"p{i}" for i in range(12)])
    one = {(r.metric, r.class_name, r.averaging): r for r in score_masks(each, groups, "xy", "y", 200)}
    ten = score_masks(np.repeat(each, 10, axis=0), np.repeat(groups, 10), "xy", "y", 200)
    for row in ten:  # copies of a patient's images add no information
        same = one[row.metric, row.class_name, row.averaging]
        assert (row.value, row.low, row.high) == pytest.approx((same.value, same.low, same.high))
        assert row.metric == FALSE_AREA or row.low < row.value < row.high


def test_dice_of_a_single_class_everywhere_follows_from_its_share() -> None:
    present = np.array([[12, 4], [0, 16], [8, 8]])
    counts = all_one_class(present, 1)
    share = present[:, 1] / 16
    assert mask_scores(counts)["dice"][:, 1].tolist() == pytest.approx((2 * share / (1 + share)).tolist())
    assert counts.sum(axis=2).tolist() == present.tolist()


def test_majority_class_of_each_tile() -> None:
    truth = np.array([[0, 0, 1, 1, 0], [0, 1, 1, 1, 0], [-1, -1, 1, 1, 1], [-1, 1, 0, 1, 1]])
    predicted = majority_class(truth, 2, 2)
    assert predicted.tolist() == [[0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    for code in (0, 1):
        assert best_dice_tiles(truth, 1, code)[truth >= 0].tolist() == truth[truth >= 0].tolist()
    assert majority_class(truth, 1, 2)[truth >= 0].tolist() == truth[truth >= 0].tolist()


def test_best_dice_tiles_match_an_exhaustive_search() -> None:
    rng = np.random.default_rng(0)
    for trial in range(12):
        truth = (rng.random((6, 5)) < rng.random((6, 5)).round() * 0.5 + 0.25).astype(int)
        truth[rng.random(truth.shape) < 0.1] = -1
        code = trial % 2
        best = mask_scores(count_pixels(best_dice_tiles(truth, 2, code), truth, 2))["dice"][code]
        all_scores = []
        for number in range(2**9):
            tiles = (number >> np.arange(9) & 1).reshape(3, 3).repeat(2, axis=0).repeat(2, axis=1)[:, :5]
            all_scores.append(mask_scores(count_pixels(tiles, truth, 2))["dice"][code])
        assert best == pytest.approx(np.nanmax(all_scores))


def test_majority_class_can_have_a_lower_dice_than_a_single_class() -> None:
    # One tile with 90% foreground, four with 40%.
    truth = np.repeat([[1] * 9 + [0], *[[1] * 4 + [0] * 6] * 4], 10, axis=0)
    dice = [
        mask_scores(count_pixels(predicted, truth, 2))["dice"][1]
        for predicted in (majority_class(truth, 10, 2), best_dice_tiles(truth, 10, 1), np.ones_like(truth))
    ]
    assert dice == pytest.approx([180 / 350, 500 / 750, 500 / 750])


def test_best_dice_tiles_of_an_absent_class_are_empty() -> None:
    assert (best_dice_tiles(np.zeros((4, 4), int), 2, 1) == 0).all()


def test_haematoxylin_mask_contains_blue_nuclei() -> None:
    image = np.full((8, 8, 3), (235, 170, 200), np.uint8)
    image[2:5, 3:6] = (80, 60, 140)
    predicted = haematoxylin_mask(image, 0)
    assert predicted[2:5, 3:6].all() and predicted.sum() == 9
    image[3, 4] = (235, 170, 200)  # smoothing closes this gap
    assert not haematoxylin_mask(image, 0)[3, 4] and haematoxylin_mask(image, 1.0)[3, 4]
