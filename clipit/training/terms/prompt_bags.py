"""Prompt bags: classify predicted text embeddings by their cosine similarity to the class prompts."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from clipit.config.training import PromptBagsConfig
from clipit.training.losses import cross_entropy_sum, prototype_logits, soft_cross_entropy_sum
from clipit.training.terms.class_prompts import required_class_embeddings
from clipit.training.terms.soft_labels import SoftLabelsTerm
from clipit.training.terms.term import MicroBatch, Term, TermInputs


class PromptBagsTerm(Term[PromptBagsConfig]):
    """Cross-entropy of cosines with class prompts, on labels and, if enabled, on soft labels of unlabelled tiles."""

    name = section = "prompt_bags"

    @property
    def uses_pairing(self) -> bool:
        """Always True: `pairing.centring` also shifts the prompts."""
        return True

    @property
    def teaches_text(self) -> bool | None:
        """Always True: the projection is aligned with text embeddings."""
        return True

    def problems(self) -> list[str]:
        """Check for a projector and class prompts."""
        problems = []
        if self.active and self.config.student.projector_layers == 0:
            problems.append(
                "prompt_bags.weight > 0 needs a projector: set student.projector_layers=1 or prompt_bags.weight=0"
            )
        if self.active and self.config.prompts is None:
            problems.append("prompt_bags.weight > 0 needs a prompt set: set the key prompts, or prompt_bags.weight=0")
        return problems

    def describe(self) -> str:
        """Describe the term with its weight."""
        return f"cross-entropy with class prompts (weight {self.weight:g})"

    def prepare(self, inputs: TermInputs) -> dict[str, Any]:
        """Embed the class prompts."""
        self._prototypes = required_class_embeddings(inputs.workspace, "prompt_bags.weight")
        self._soft = inputs.term(SoftLabelsTerm)
        return {}

    def count(self, rows: Int[np.ndarray, "b"]) -> float:
        """Sum the weights of the tiles: 1 per labelled tile, plus the weights of the soft labels."""
        if self._soft is not None and self._soft.replaces_labels:
            return self._soft.count(rows)
        labelled = float((self.labels[rows] >= 0).sum())
        return labelled if self._soft is None else labelled + self._soft.count(rows)

    def sum(self, batch: MicroBatch) -> Float[Tensor, ""]:
        """Sum the cross-entropies of the cosines with the prompts."""
        logits = prototype_logits(batch.projected, batch.tensor(self._prototypes), self.options.temperature)
        if self._soft is not None and self._soft.replaces_labels:
            return soft_cross_entropy_sum(logits, *self._soft.targets(batch))
        total = cross_entropy_sum(logits, batch.labels)
        if self._soft is None:
            return total
        return total + soft_cross_entropy_sum(logits, *self._soft.targets(batch))
