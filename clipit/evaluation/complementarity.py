"""Complementarity of two classifiers: R in figure 3 of CLIP-IT (arXiv 2504.16181)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from clipit.evaluation.intervals import Interval, bootstrap
from clipit.evaluation.predictions import Predictions, align_predictions


@dataclass(frozen=True)
class Complementarity:
    """Numbers of labelled tiles that both, one or neither of two classifiers classify correctly.

    Attributes:
        both: Tiles that both classify correctly.
        only_vision: Tiles that only the image classifier classifies correctly.
        only_other: Tiles that only the other classifier classifies correctly: the paper's R.
        neither: Tiles that both misclassify.
        intervals: 95% bootstrap intervals (by group where known) of `share`, `of_wrong` and `excess`.
    """

    both: int
    only_vision: int
    only_other: int
    neither: int
    intervals: dict[str, Interval]

    @property
    def tiles(self) -> int:
        """Number of labelled tiles."""
        return self.both + self.only_vision + self.only_other + self.neither

    @property
    def share(self) -> float:
        """R as a fraction of all tiles."""
        return self.only_other / self.tiles

    @property
    def of_wrong(self) -> float | None:
        """R as a fraction of the tiles that the image classifier misclassifies; None if there are none."""
        wrong = self.only_other + self.neither
        return self.only_other / wrong if wrong else None

    @property
    def expected(self) -> float:
        """Expected `share` if errors were independent: (1 - accuracy of the image classifier) * accuracy of the other.

        R is above 0 even if the other classifier adds nothing; correlated errors (tiles that are hard for both) lower R
        below this value.
        """
        vision = (self.both + self.only_vision) / self.tiles
        other = (self.both + self.only_other) / self.tiles
        return (1 - vision) * other

    @property
    def excess(self) -> float:
        """`share` minus `expected`; above 0, the other classifier corrects more than if errors were independent."""
        return self.share - self.expected


def complementarity(vision: Predictions, other: Predictions, resamples: int = 1000, seed: int = 0) -> Complementarity:
    """Count the labelled tiles of one split that two classifiers classify correctly; rows are matched by id.

    Args:
        vision: Predictions of the image classifier.
        other: Predictions of any other classifier, such as the text-only one, a second seed or the VLM's image probe.
        resamples: Number of bootstrap resamples; 0 for no intervals.

    Raises:
        DataError: The predictions differ in tiles, split, labels, groups or classes, or no tile has a label.
    """
    vision, other = align_predictions([vision, other])
    first = (vision.probabilities.argmax(axis=1) == vision.labels).astype(np.float64)
    second = (other.probabilities.argmax(axis=1) == other.labels).astype(np.float64)

    def shares(weights: Float[np.ndarray, "n r"]) -> dict[str, Float[np.ndarray, " r"]]:
        total = weights.sum(axis=0)
        rescued = ((1 - first) * second) @ weights
        wrong = (1 - first) @ weights
        of_wrong = np.full(len(total), np.nan)
        np.divide(rescued, wrong, out=of_wrong, where=wrong > 0)
        expected = (wrong / total) * ((second @ weights) / total)
        return {"share": rescued / total, "of_wrong": of_wrong, "excess": rescued / total - expected}

    return Complementarity(
        both=int((first * second).sum()),
        only_vision=int((first * (1 - second)).sum()),
        only_other=int(((1 - first) * second).sum()),
        neither=int(((1 - first) * (1 - second)).sum()),
        intervals=bootstrap(shares, vision.patients, resamples, seed),
    )
