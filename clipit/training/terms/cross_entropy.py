"""Cross-entropy of the labelled tiles, which every run uses unless its targets are annotator posteriors."""

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from clipit.config.run import TrainingConfig
from clipit.training.losses import cross_entropy_sum
from clipit.training.terms.term import MicroBatch, Term


class CrossEntropyTerm(Term[TrainingConfig]):
    """Cross-entropy with `training.label_smoothing`; the weights of other terms are relative to its weight of 1."""

    name = "cross_entropy"
    section = "training"
    shares_section = True

    @property
    def active(self) -> bool:
        """True unless `soft_labels` uses annotator posteriors as targets instead."""
        return self.config.soft_labels.source != "annotators"

    def describe(self) -> str:
        """Describe the term, unless the run uses no labels."""
        return "" if self.config.tiles.labels.kind == "none" else "labels (cross-entropy, weight 1)"

    def count(self, rows: Int[np.ndarray, "b"]) -> float:
        """Count the labelled tiles."""
        return float((self.labels[rows] >= 0).sum())

    def sum(self, batch: MicroBatch) -> Float[Tensor, ""]:
        """Sum the cross-entropies of the labelled tiles."""
        return cross_entropy_sum(batch.logits, batch.labels, self.options.label_smoothing)
