"""Score segmentations: Dice, IoU, precision and recall per class, with bootstrap intervals.

Everything is computed from one confusion matrix per image, over its labelled pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int64, Integer, Shaped

from clipit.errors import DataError
from clipit.evaluation.intervals import Interval, estimate
from clipit.evaluation.metrics import divide, mean_defined
from clipit.tiles.mask_files import IGNORED

FALSE_AREA = "false_area"
"""Fraction of pixels predicted as a class, over the images that do not contain this class."""
MEAN = "mean of the foreground"
"""Name of the mean over the foreground classes."""
Averaging = Literal["images", "pixels"]
"""`images`: mean score of the images whose mask contains the class; `pixels`: score over the pooled pixels of all
images, in which large images count more."""


def count_pixels(
    predicted: Integer[np.ndarray, "h w"], truth: Integer[np.ndarray, "h w"], classes: int
) -> Int64[np.ndarray, "c c"]:
    """Count the labelled pixels of an image by true and predicted class.

    Args:
        truth: True class of each pixel; -1 is ignored.
    """
    labelled = truth != IGNORED
    flat = truth[labelled].astype(np.int64) * classes + predicted[labelled]
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def mask_scores(
    counts: Float[np.ndarray, "*n c c"] | Int64[np.ndarray, "*n c c"],
) -> dict[str, Float64[np.ndarray, "*n c"]]:
    """Compute Dice, IoU, precision and recall per class from confusion matrices.

    Dice is 2 tp / (2 tp + fp + fn) and IoU tp / (tp + fp + fn), undefined for a class that is neither present nor
    predicted. Precision is undefined for a class that is not predicted, recall for one that is not present.

    Args:
        counts: Pixels by true class (rows) and predicted class.

    Returns:
        Scores in 0..1, by metric; NaN where undefined.
    """
    counts = counts.astype(np.float64)
    true_positives = np.diagonal(counts, axis1=-2, axis2=-1)
    present, predicted = counts.sum(axis=-1), counts.sum(axis=-2)
    ratios = {
        "dice": (2 * true_positives, present + predicted),
        "iou": (true_positives, present + predicted - true_positives),
        "precision": (true_positives, predicted),
        "recall": (true_positives, present),
    }
    return {name: divide(numerator, total) for name, (numerator, total) in ratios.items()}


def foreground_dice(counts: Int64[np.ndarray, "n c c"], foreground: Sequence[int]) -> Float64[np.ndarray, " n"]:
    """Return each image's mean Dice over the foreground classes in its mask; NaN if there are none."""
    return _image_scores(counts, foreground)["dice"][:, -1]


@dataclass(frozen=True)
class MaskScore:
    """A score of a segmentation.

    Attributes:
        metric: dice, iou, precision or recall, or `FALSE_AREA`.
        class_name: Class, or `MEAN`.
        averaging: Whether the images' scores are averaged or all pixels are pooled.
        value: Score in 0..1; None where undefined.
        low: Lower end of the 95% interval; None if there is no interval.
        high: Upper end of the 95% interval; None if there is no interval.
        reason: Reason why the interval is missing; "" otherwise.
        images: Number of images with the class; for `FALSE_AREA`, without it.
    """

    metric: str
    class_name: str
    averaging: Averaging
    value: float | None
    low: float | None
    high: float | None
    reason: str
    images: int


def score_masks(
    counts: Int64[np.ndarray, "n c c"],
    groups: Shaped[np.ndarray, " n"],
    classes: Sequence[str],
    foreground: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> list[MaskScore]:
    """Score segmentations per class and averaged over the foreground, with bootstrap intervals over patients.

    A score is averaged over the images whose mask contains the class, which are the same for every segmentation; if the
    class is not predicted in one of them, its precision there is 0. Predictions in the other images count as
    `FALSE_AREA`, which for `MEAN` is the fraction predicted as any foreground class in images that contain none.

    Args:
        groups: Patient of each image; "" where unknown.
        resamples: Number of bootstrap resamples; 0 for no intervals.

    Raises:
        DataError: There are no images.
    """
    if not len(counts):
        raise DataError("no images to score", fix="add masks to the test split")
    columns = [list(classes).index(name) for name in foreground]
    names = [*classes, MEAN]
    per_image = _image_scores(counts, columns)
    false, empty = _false_areas(counts, columns)
    flat = counts.reshape(len(counts), -1).astype(np.float64)

    def statistics(weights: Float[np.ndarray, "n r"]) -> dict[str, Float[np.ndarray, " r"]]:
        summed = (weights.T @ flat).reshape(-1, *counts.shape[1:])
        pooled = _with_mean(mask_scores(summed), columns)
        scores = {
            (metric, "images"): _weighted_mean(np.nan_to_num(each), np.isfinite(each), weights)
            for metric, each in per_image.items()
        }
        scores |= {(metric, "pixels"): each for metric, each in pooled.items()}
        scores[FALSE_AREA, "images"] = _weighted_mean(false / np.maximum(empty, 1), empty > 0, weights)
        scores[FALSE_AREA, "pixels"] = _weighted_mean(false, empty, weights)
        return {
            f"{metric}\0{name}\0{averaging}": values[:, column]
            for (metric, averaging), values in scores.items()
            for column, name in enumerate(names)
        }

    rows = []
    for key, each in estimate(statistics, groups, resamples, seed).items():
        metric, name, averaging = key.split("\0")
        column = names.index(name)
        counted = empty[:, column] > 0 if metric == FALSE_AREA else np.isfinite(per_image[metric][:, column])
        interval = each.interval if each.value is not None else Interval(None, None, "undefined in all images")
        rows.append(
            MaskScore(
                metric, name, "images" if averaging == "images" else "pixels", each.value,
                interval.low, interval.high, interval.reason, int(counted.sum()),
            )
        )  # fmt: skip
    return rows


def _image_scores(
    counts: Int64[np.ndarray, "n c c"], foreground: Sequence[int]
) -> dict[str, Float64[np.ndarray, "n c1"]]:
    """Score each image and class, and the mean of the foreground; NaN for a class that the image does not contain."""
    present = counts.sum(axis=2) > 0
    scores = {name: np.where(present, np.nan_to_num(values), np.nan) for name, values in mask_scores(counts).items()}
    return _with_mean(scores, foreground)


def _false_areas(
    counts: Int64[np.ndarray, "n c c"], foreground: Sequence[int]
) -> tuple[Float64[np.ndarray, "n c1"], Float64[np.ndarray, "n c1"]]:
    """Count the pixels predicted as a class that an image does not contain, and all pixels of such images.

    The last column counts the foreground classes together.
    """
    present, predicted = (
        np.concatenate([sums, sums[:, list(foreground)].sum(axis=1, keepdims=True)], axis=1).astype(np.float64)
        for sums in (counts.sum(axis=2), counts.sum(axis=1))
    )
    total = counts.sum(axis=(1, 2))[:, None]
    return np.where(present == 0, predicted, 0.0), np.where(present == 0, total, 0.0)


def _weighted_mean(
    values: Float64[np.ndarray, "n c1"], counted: Shaped[np.ndarray, "n c1"], weights: Float[np.ndarray, "n r"]
) -> Float64[np.ndarray, "r c1"]:
    """Divide the weighted sum of values by the weighted sum of counts, for each weighting; NaN for a count of 0."""
    return divide(weights.T @ values, weights.T @ counted.astype(np.float64))


def _with_mean(
    scores: Mapping[str, Float64[np.ndarray, "n c"]], foreground: Sequence[int]
) -> dict[str, Float64[np.ndarray, "n c1"]]:
    """Append the mean over the foreground classes as an extra column."""
    return {
        name: np.concatenate([values, mean_defined(values[:, list(foreground)])[:, None]], axis=1)
        for name, values in scores.items()
    }
