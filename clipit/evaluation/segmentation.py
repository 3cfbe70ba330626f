"""Scores of segmentations: Dice, IoU, precision and recall per class, with floors, ceilings and bootstrap intervals.

Everything is computed from one confusion matrix per image, over its labelled pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Integer, Shaped, UInt8

from clipit.errors import DataError
from clipit.evaluation.intervals import bootstrap
from clipit.evaluation.perturb import HED
from clipit.slides.tissue import otsu

MASK_METRICS = ("dice", "iou", "precision", "recall")
MEAN = "mean of the foreground"
"""Name of the mean over the foreground classes."""
Averaging = Literal["images", "pixels"]
"""`images`: mean of the images' scores; `pixels`: score of all pixels together, in which large images count more."""
_IGNORED = -1


def count_pixels(
    predicted: Integer[np.ndarray, "h w"], truth: Integer[np.ndarray, "h w"], classes: int
) -> Int64[np.ndarray, "c c"]:
    """Count the labelled pixels of an image by true and predicted class.

    Args:
        predicted: Class of each pixel.
        truth: True class of each pixel; -1 is ignored.
        classes: Number of classes.
    """
    labelled = truth != _IGNORED
    flat = truth[labelled].astype(np.int64) * classes + predicted[labelled]
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def mask_scores(
    counts: Float[np.ndarray, "*n c c"] | Int64[np.ndarray, "*n c c"],
) -> dict[str, Float64[np.ndarray, "*n c"]]:
    """Compute the scores of each class from confusion matrices, by name.

    Dice is 2 tp / (2 tp + fp + fn) and IoU tp / (tp + fp + fn), undefined for a class that is neither present nor
    predicted. Precision is undefined for a class that is not predicted, recall for one that is not present.

    Args:
        counts: Pixels by true class (rows) and predicted class.

    Returns:
        Scores in 0..1; NaN where undefined.
    """
    counts = counts.astype(np.float64)
    inside = np.diagonal(counts, axis1=-2, axis2=-1)
    present, predicted = counts.sum(axis=-1), counts.sum(axis=-2)
    ratios = {
        "dice": (2 * inside, present + predicted),
        "iou": (inside, present + predicted - inside),
        "precision": (inside, predicted),
        "recall": (inside, present),
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        return {name: np.where(below > 0, above / below, np.nan) for name, (above, below) in ratios.items()}


def foreground_dice(counts: Int64[np.ndarray, "n c c"], foreground: Sequence[int]) -> Float64[np.ndarray, " n"]:
    """Return the Dice of each image, the mean over its foreground classes; NaN if none is present or predicted."""
    return _mean(mask_scores(counts)["dice"][:, list(foreground)], 1)


@dataclass(frozen=True)
class MaskScore:
    """A score of a segmentation.

    Attributes:
        metric: One of `MASK_METRICS`.
        class_name: Class, or `MEAN`.
        averaging: Whether the images' scores are averaged or all pixels taken together.
        value: Score in 0..1; None where undefined.
        low: Lower end of the 95 % interval; None without one.
        high: Upper end.
        reason: Why the interval is missing; empty otherwise.
        images: Number of images in which the score is defined.
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
    """Score segmentations per class and as the mean of the foreground, with bootstrap intervals over patients.

    Args:
        counts: Confusion matrix of each image.
        groups: Patient of each image; "" where unknown.
        classes: Class names.
        foreground: Names of the foreground classes.
        resamples: Number of bootstrap resamples; 0 for no intervals.
        seed: Seed of the bootstrap.

    Raises:
        DataError: There is no image.
    """
    if not len(counts):
        raise DataError("no image to score", fix="add masks to the test split")
    columns = [list(classes).index(name) for name in foreground]
    names = [*classes, MEAN]
    per_image = _with_mean(mask_scores(counts), columns)
    flat = counts.reshape(len(counts), -1).astype(np.float64)

    def statistics(weights: Float[np.ndarray, "n r"]) -> dict[str, Float[np.ndarray, " r"]]:
        summed = (weights.T @ flat).reshape(-1, *counts.shape[1:])
        pooled = _with_mean(mask_scores(summed), columns)
        scores: dict[str, Float[np.ndarray, " r"]] = {}
        for metric in MASK_METRICS:
            values = per_image[metric]
            defined = np.isfinite(values)
            total = weights.T @ defined.astype(np.float64)
            with np.errstate(divide="ignore", invalid="ignore"):
                means = weights.T @ np.where(defined, values, 0.0) / total
            for column, name in enumerate(names):
                scores[f"{metric}\0{name}\0images"] = np.where(total[:, column] > 0, means[:, column], np.nan)
                scores[f"{metric}\0{name}\0pixels"] = pooled[metric][:, column]
        return scores

    values = statistics(np.ones((len(counts), 1)))
    intervals = bootstrap(statistics, groups, resamples, seed)
    rows = []
    for key, value in values.items():
        metric, name, averaging = key.split("\0")
        defined = int(np.isfinite(per_image[metric][:, names.index(name)]).sum())
        number = float(value[0]) if np.isfinite(value[0]) else None
        interval = intervals[key]
        reason = interval.reason if number is not None else "not defined in any image"
        rows.append(
            MaskScore(
                metric, name, "images" if averaging == "images" else "pixels", number,
                interval.low if number is not None else None, interval.high if number is not None else None,
                reason, defined,
            )
        )  # fmt: skip
    return rows


def _with_mean(
    scores: Mapping[str, Float64[np.ndarray, "n c"]], foreground: Sequence[int]
) -> dict[str, Float64[np.ndarray, "n c1"]]:
    """Append the mean over the foreground classes as a further column."""
    return {
        name: np.concatenate([values, _mean(values[:, list(foreground)], 1)[:, None]], axis=1)
        for name, values in scores.items()
    }


def _mean(values: Float64[np.ndarray, "n c"], axis: int) -> Float64[np.ndarray, " n"]:
    """Return the mean of the defined values; NaN without any."""
    defined = np.isfinite(values)
    number = defined.sum(axis=axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(number > 0, np.where(defined, values, 0.0).sum(axis=axis) / number, np.nan)


def all_one_class(present: Int64[np.ndarray, "n c"], code: int) -> Int64[np.ndarray, "n c c"]:
    """Return the confusion matrices of a prediction that calls every pixel one class.

    The Dice of this class in an image of which it covers the share p is 2 p / (1 + p).

    Args:
        present: Pixels of each image by true class.
        code: Predicted class.
    """
    counts = np.zeros((*present.shape, present.shape[1]), dtype=np.int64)
    counts[:, :, code] = present
    return counts


def haematoxylin_mask(image: UInt8[np.ndarray, "h w 3"], smoothing: float | int) -> Bool[np.ndarray, "h w"]:
    """Return where the smoothed haematoxylin of an H&E image exceeds Otsu's threshold.

    Concentrations are those of the fixed stains of Ruifrok and Johnston (2001), scaled to 0..1 within the image.

    Args:
        image: RGB image.
        smoothing: Standard deviation of a Gaussian in pixels, which joins neighbouring nuclei; 0 for none.
    """
    from scipy.ndimage import gaussian_filter

    density = -np.log((image.astype(np.float32) + 1) / 256)
    amount = np.maximum(density @ np.linalg.inv(HED)[:, 0].astype(np.float32), 0)
    if smoothing:
        amount = gaussian_filter(amount, smoothing)
    low, high = float(amount.min()), float(amount.max())
    scaled = ((amount - low) / max(high - low, 1e-6)).astype(np.float32)
    return np.asarray(scaled > otsu(scaled))


def perfect_answers(truth: Integer[np.ndarray, "h w"], edge: int, classes: int) -> Int64[np.ndarray, "h w"]:
    """Return the segmentation by a perfect answer per tile: each gets the class of most of its labelled pixels.

    Tiles lie side by side from the upper left corner; those at the right and lower border are cut off.

    Args:
        truth: True class of each pixel; -1 is ignored.
        edge: Edge of a tile in pixels.
        classes: Number of classes.
    """
    height, width = truth.shape
    rows, columns = np.arange(0, height, edge), np.arange(0, width, edge)
    areas = [
        np.add.reduceat(np.add.reduceat((truth == code).astype(np.int64), rows, axis=0), columns, axis=1)
        for code in range(classes)
    ]
    answers = np.stack(areas).argmax(axis=0).repeat(edge, axis=0)[:height].repeat(edge, axis=1)[:, :width]
    return np.asarray(answers, dtype=np.int64)
