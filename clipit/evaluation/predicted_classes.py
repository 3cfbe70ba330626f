"""Predicted classes of unlabelled images: how often each occurs, how certain they are, and which are extreme."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

_DIGITS = 6


@dataclass(frozen=True)
class PredictedClasses:
    """Class and confidence of each predicted image.

    Attributes:
        classes: Class names.
        rows: Position of each image among all images, unreadable ones included.
        best: Index of the most probable class.
        confidence: Probability of that class.
    """

    classes: tuple[str, ...]
    rows: Int64[np.ndarray, " n"]
    best: Int64[np.ndarray, " n"]
    confidence: Float32[np.ndarray, " n"]

    def summarise(self) -> dict[str, Any]:
        """Return count, share and mean confidence per class, and the mean confidence of all images."""
        classes = {}
        for number, name in enumerate(self.classes):
            mine = self.confidence[self.best == number]
            share = round(mine.size / max(1, self.best.size), _DIGITS)
            classes[name] = {"images": int(mine.size), "share": share, "mean_confidence": _mean(mine)}
        return {"mean_confidence": _mean(self.confidence), "classes": classes}

    def least_certain(self, most: int) -> Int64[np.ndarray, " k"]:
        """Return the indices of the least certain images, ties in the order of the images."""
        return np.argsort(self.confidence, kind="stable")[:most].astype(np.int64)

    def most_certain(self, number: int, most: int) -> Int64[np.ndarray, " k"]:
        """Return the indices of the most certain images of one class, ties in the order of the images."""
        mine = np.flatnonzero(self.best == number)
        return mine[np.argsort(-self.confidence[mine], kind="stable")[:most]].astype(np.int64)


def _mean(values: Float32[np.ndarray, " n"]) -> float | None:
    return round(float(values.astype(np.float64).mean()), _DIGITS) if values.size else None
