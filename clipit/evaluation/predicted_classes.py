"""Summarise predicted classes of unlabelled images: frequency, confidence, most and least certain images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

_DIGITS = 6


@dataclass(frozen=True)
class PredictedClasses:
    """Predicted class and confidence of each image.

    Attributes:
        rows: Position of each image among all images, including unreadable ones.
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
            of_class = self.confidence[self.best == number]
            share = round(of_class.size / max(1, self.best.size), _DIGITS)
            classes[name] = {"images": int(of_class.size), "share": share, "mean_confidence": _mean(of_class)}
        return {"mean_confidence": _mean(self.confidence), "classes": classes}

    def least_certain(self, count: int) -> Int64[np.ndarray, " k"]:
        """Return the indices of the least certain images; ties keep the order of the images."""
        return np.argsort(self.confidence, kind="stable")[:count].astype(np.int64)

    def most_certain(self, class_index: int, count: int) -> Int64[np.ndarray, " k"]:
        """Return the indices of the most certain images of one class; ties keep the order of the images."""
        of_class = np.flatnonzero(self.best == class_index)
        return of_class[np.argsort(-self.confidence[of_class], kind="stable")[:count]].astype(np.int64)


def _mean(values: Float32[np.ndarray, " n"]) -> float | None:
    return round(float(values.astype(np.float64).mean()), _DIGITS) if values.size else None
