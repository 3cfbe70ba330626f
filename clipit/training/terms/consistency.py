"""Consistency: two augmented views of a tile should get the same probabilities."""

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
        """The term needs no label."""
        return True

    def describe(self) -> str:
        """With its weight."""
        return f"consistency of two views (weight {self.weight:g})"

    def _mask(self, rows: Int[np.ndarray, "b"]) -> Bool[np.ndarray, "b"]:
        """Tiles without a label; all of them when every training tile has one."""
        if (self.labels >= 0).all():
            return np.ones(len(rows), dtype=np.bool_)
        return np.asarray(self.labels[rows] < 0, dtype=np.bool_)

    def count(self, rows: Int[np.ndarray, "b"]) -> float:
        """Tiles whose views are compared."""
        return float(self._mask(rows).sum())

    def sum(self, batch: MicroBatch) -> Float[Tensor, ""]:
        """Squared distance between the two views' probabilities."""
        first, second = batch.views[:2]
        return consistency_sum(first, second, batch.tensor(self._mask(batch.rows)))
