"""Consistency between the class probabilities of two augmented views of a tile."""

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipit.config.training import ConsistencyConfig
from clipit.training.losses import consistency_sum
from clipit.training.terms.term import MicroBatch, Term


class ConsistencyTerm(Term[ConsistencyConfig]):
    """Squared distance between the class probabilities of two views."""

    name = section = "consistency"
    views = 2

    @property
    def uses_unlabelled(self) -> bool:
        """Always True: the term needs no labels."""
        return True

    def describe(self) -> str:
        """Describe the term with its weight."""
        return f"consistency between two views (weight {self.weight:g})"

    def _mask(self, rows: Int[np.ndarray, "b"]) -> Bool[np.ndarray, "b"]:
        """Return the mask of the unlabelled tiles, or of all tiles if every training tile is labelled."""
        if (self.labels >= 0).all():
            return np.ones(len(rows), dtype=np.bool_)
        return np.asarray(self.labels[rows] < 0, dtype=np.bool_)

    def count(self, rows: Int[np.ndarray, "b"]) -> float:
        """Count the tiles whose views are compared."""
        return float(self._mask(rows).sum())

    def sum(self, batch: MicroBatch) -> Float[Tensor, ""]:
        """Sum the squared distances between the two views' probabilities."""
        first, second = batch.views[:2]
        return consistency_sum(first, second, batch.tensor(self._mask(batch.rows)))
