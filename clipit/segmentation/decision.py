"""Decision rules for pixels: the most probable class, or a threshold chosen on validation masks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int16, Int64
from PIL import Image

from clipit.config.segmentation import SegmentationConfig
from clipit.evaluation.segmentation_scores import count_pixels, foreground_dice
from clipit.progress import progress
from clipit.tiles.masks import MaskSet

_CANDIDATES = np.linspace(-12, 12, 961)
"""Candidate thresholds on the log odds of the second class."""
_MIN_PROBABILITY = 1e-7  # lower bound on probabilities, so that log odds are finite
_TIE = 1e-12  # thresholds whose mean Dice differs by less are tied

Predict = Callable[[Image.Image, float], Float32[np.ndarray, "c h w"]]
"""Function from an image and its micrometres per pixel to class probabilities."""


@dataclass(frozen=True)
class Decision:
    """A rule that turns class probabilities into classes.

    Attributes:
        log_odds: Threshold on the log odds of the second of two classes; None for the most probable class.
        dice: Mean foreground Dice on the validation masks; NaN without validation masks.
    """

    log_odds: float | None = None
    dice: float = float("nan")

    @property
    def threshold(self) -> float | None:
        """Threshold on the probability of the second class; None for the most probable class."""
        return None if self.log_odds is None else float(1 / (1 + np.exp(-self.log_odds)))

    def classes(self, probabilities: Float32[np.ndarray, "c h w"]) -> Int64[np.ndarray, "h w"]:
        """Return the class of each pixel."""
        if self.log_odds is None:
            return np.asarray(probabilities.argmax(axis=0), dtype=np.int64)
        return np.asarray(_log_odds(probabilities) >= self.log_odds, dtype=np.int64)


class DecisionSearch:
    """Search for the rule with the highest mean foreground Dice on validation masks.

    With two classes, the rule is a threshold; ties go to the threshold nearest to a probability of 0.5. With more
    classes, or with `threshold: none`, the rule is the most probable class, and only its Dice is computed.
    """

    def __init__(self, classes: Sequence[str], options: SegmentationConfig) -> None:
        """Initialise the search; no mask has been scored yet.

        Args:
            options: Section `segmentation`.
        """
        self._classes = len(classes)
        self._foreground = [list(classes).index(name) for name in options.averaged]
        self._chooses_threshold = self._classes == 2 and options.threshold == "validation"
        rules = len(_CANDIDATES) if self._chooses_threshold else 1
        self._sums, self._images = np.zeros(rules), np.zeros(rules, dtype=np.int64)

    def add(self, probabilities: Float32[np.ndarray, "c h w"], truth: Int16[np.ndarray, "h w"]) -> None:
        """Score all rules on a validation mask."""
        if self._chooses_threshold:
            counts = _counts_by_threshold(probabilities, truth)
        else:
            counts = count_pixels(probabilities.argmax(axis=0), truth, self._classes)[None]
        dice = foreground_dice(counts, self._foreground)
        self._sums += np.nan_to_num(dice)
        self._images += np.isfinite(dice)

    def best(self) -> Decision:
        """Return the best rule; the most probable class if no mask was added."""
        if not self._images.any():
            return Decision()
        means = np.where(self._images > 0, self._sums / np.maximum(self._images, 1), -1.0)
        if not self._chooses_threshold:
            return Decision(None, float(means[0]))
        best = np.flatnonzero(means >= means.max() - _TIE)
        chosen = best[np.abs(_CANDIDATES[best]).argmin()]
        return Decision(float(_CANDIDATES[chosen]), float(means[chosen]))


def choose_decision(predict: Predict, masks: MaskSet, options: SegmentationConfig) -> Decision:
    """Return the decision rule with the highest foreground Dice on the validation masks (`DecisionSearch`).

    Args:
        predict: Function from an image and its micrometres per pixel to class probabilities.
        masks: Validation masks.
        options: Section `segmentation`.
    """
    search = DecisionSearch(masks.classes.names, options)
    with progress("predicting validation masks", len(masks), shown=len(masks) > 0) as advance:
        for index in range(len(masks)):
            image, truth = masks.read(index)
            search.add(predict(image, float(masks.tiles.mpp[index])), truth)
            advance()
    return search.best()


def _log_odds(probabilities: Float32[np.ndarray, "2 h w"]) -> Float64[np.ndarray, "h w"]:
    first, second = np.maximum(probabilities.astype(np.float64), _MIN_PROBABILITY)
    return np.asarray(np.log(second) - np.log(first))


def _counts_by_threshold(
    probabilities: Float32[np.ndarray, "2 h w"], truth: Int16[np.ndarray, "h w"]
) -> Int64[np.ndarray, "t 2 2"]:
    """Count pixels by true and predicted class for each candidate threshold."""
    thresholds_reached = np.searchsorted(_CANDIDATES, _log_odds(probabilities), side="right")
    counts = np.zeros((len(_CANDIDATES), 2, 2), dtype=np.int64)
    for code in (0, 1):
        histogram = np.bincount(thresholds_reached[truth == code], minlength=len(_CANDIDATES) + 1)
        above = histogram[::-1].cumsum()[::-1][1:]  # pixels that reach at least t + 1 thresholds
        counts[:, code, 1] = above
        counts[:, code, 0] = histogram.sum() - above
    return counts
