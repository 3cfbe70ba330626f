"""Frozen features with ids, labels and groups: the input of probes, few-shot episodes and retrieval."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64, Shaped

from clipit.errors import DataError, repeats, shortlist


@dataclass(frozen=True)
class Features:
    """Feature vectors of tiles or texts, one row each.

    Attributes:
        vectors: Features as the model returns them, not normalised.
        labels: Class indices; -1 where unknown.
        groups: Patient or slide; "" where unknown.
    """

    ids: Shaped[np.ndarray, " n"]
    vectors: Float[np.ndarray, "n d"]
    labels: Int64[np.ndarray, " n"]
    groups: Shaped[np.ndarray, " n"]

    def __post_init__(self) -> None:
        lengths = {len(self.ids), len(self.vectors), len(self.labels), len(self.groups)}
        if len(lengths) > 1:
            raise DataError(
                f"ids, vectors, labels and groups differ in length: {sorted(lengths)}",
                fix="pass one id, vector, label and group per row",
            )
        if repeated := repeats(self.ids.tolist(), lambda row: f"row {row + 1}"):
            raise DataError(f"duplicate ids among features: {shortlist(repeated, 3)}", fix="make the ids unique")
        invalid = ~np.isfinite(self.vectors).all(axis=1)
        if invalid.any():
            raise DataError(
                f"features that are not finite: {shortlist(self.ids[invalid].tolist())}",
                fix="check the model's precision (fp16 can overflow)",
            )

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Shaped[np.ndarray, " k"]) -> "Features":
        """Select rows by a mask or by their indices."""
        return Features(self.ids[rows], self.vectors[rows], self.labels[rows], self.groups[rows])

    def labelled(self) -> "Features":
        """Return the labelled rows, sorted by id, so that no result depends on the order of rows."""
        rows = np.flatnonzero(self.labels >= 0)
        return self.take(rows[np.argsort(self.ids[rows], kind="stable")])


Probe = Callable[[Features, Features, Float[np.ndarray, "n d"], int], Float32[np.ndarray, "n c"]]
"""Function of training features, validation features, vectors to classify and number of classes; returns class
probabilities."""


def class_counts(features: Features, n_classes: int) -> Int64[np.ndarray, " c"]:
    """Count the labelled rows per class."""
    return np.bincount(features.labels[features.labels >= 0], minlength=n_classes).astype(np.int64)
