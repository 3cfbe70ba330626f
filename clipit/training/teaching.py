"""What a student is taught beside labels: frozen vectors and probabilities by row of the training tiles."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float32, Int

from clipit.stores.embed import Store, centred
from clipit.training.targets import Targets

REPORT_LABELS = ("report_labels", "report_labels_and_image")
"""Targets that the reports' own labels are read for."""
COLDEST = 0.01
"""Learnt temperatures of the bags are held here or above: CLIP's logit scale of 100 (arXiv 2103.00020, section 2.5)."""


@dataclass(frozen=True)
class SoftLabels:
    """Probabilities that stand for a label, with the weight of each tile (between 0 and 1)."""

    probabilities: Float32[np.ndarray, "n classes"]
    weights: Float32[np.ndarray, "n"]


@dataclass(frozen=True)
class Bag:
    """Members of each tile's bag, as rows of a store; -1 where there is none. Vectors are read when asked for."""

    store: Store
    mean: Float32[np.ndarray, "dim"] | None
    members: Int[np.ndarray, "n k"]

    def vectors(self, rows: Int[np.ndarray, "b"]) -> tuple[Float32[np.ndarray, "b k dim"], Bool[np.ndarray, "b k"]]:
        """Unit vectors of the members of these tiles, and which of them exist."""
        chosen = self.members[rows]
        return centred(self.store.rows(np.maximum(chosen, 0)), self.mean), chosen >= 0


@dataclass(frozen=True)
class PromptMembers:
    """Prompts in the text bags: their unit vectors, rows of these per tile, and which of them count."""

    vectors: Float32[np.ndarray, "entries dim"]
    codes: Int[np.ndarray, "entries"]
    """Equal for equal texts: dictionary and class prompts may have one in common."""
    rows: Int[np.ndarray, "n p"]
    there: Bool[np.ndarray, "n p"]


@dataclass(frozen=True)
class Bags:
    """Text bags and tile bags of the training tiles.

    Attributes:
        texts: Paired snippets.
        prompts: Nearest texts of the prompt dictionary and of the class prompts; or None.
        tiles: Neighbour tiles; None when the tile bag is the student's own view alone.
        counts: What was pruned and what stayed empty, for the account.
        weights: Of the paired snippets, summing to 1 in each bag that has some; None: all members count equally.
    """

    texts: Bag
    prompts: PromptMembers | None
    tiles: Bag | None
    counts: dict[str, int] = field(default_factory=dict)
    weights: Float32[np.ndarray, "n k"] | None = None

    def text_members(
        self, rows: Int[np.ndarray, "b"]
    ) -> tuple[Float32[np.ndarray, "b k dim"], Bool[np.ndarray, "b k"]]:
        """Vectors and mask of the text bags of these tiles."""
        vectors, mask = self.texts.vectors(rows)
        if self.prompts is None:
            return vectors, mask
        more = self.prompts.vectors[self.prompts.rows[rows]]
        return np.concatenate([vectors, more], axis=1), np.concatenate([mask, self.prompts.there[rows]], axis=1)

    def text_ids(self, rows: Int[np.ndarray, "b"]) -> Int[np.ndarray, "b k"]:
        """Numbers that stand for the texts in the bags of these tiles; equal texts are equal, -1 is none.

        A snippet is its row in the text store; the prompts are numbered after all snippets.
        """
        snippets: Int[np.ndarray, "b k"] = self.texts.members[rows]
        if self.prompts is None:
            return snippets
        prompts = self.prompts.codes[self.prompts.rows[rows]] + len(self.texts.store.ids)
        return np.concatenate([snippets, np.where(self.prompts.there[rows], prompts, -1)], axis=1)

    def text_weights(self, rows: Int[np.ndarray, "b"]) -> Float32[np.ndarray, "b k"] | None:
        """Weights of the members of these tiles' text bags: 1 on average over the snippets, 1 for each prompt."""
        if self.weights is None:
            return None
        there = self.texts.members[rows] >= 0
        weights = np.where(there, self.weights[rows] * there.sum(axis=1, keepdims=True), 0).astype(np.float32)
        if self.prompts is None:
            return weights
        return np.concatenate([weights, self.prompts.there[rows].astype(np.float32)], axis=1)


@dataclass(frozen=True)
class Teaching:
    """All of it; what is None is not taught.

    Attributes:
        targets: For the projector.
        second: For the projector of a second VLM.
        soft: For tiles without a label.
        prototypes: Class prompts as unit vectors, in the classes' order.
        bags: For the many-to-many term.
    """

    targets: Targets | None = None
    second: Targets | None = None
    soft: SoftLabels | None = None
    prototypes: Float32[np.ndarray, "classes dim"] | None = None
    bags: Bags | None = None


_TEXT_SIDES = {"adapter": "text embeddings behind an adapter", "lora": "text tower with LoRA"}
_MEANINGLESS = ("shuffled_text", "random_text", "random_codes")
