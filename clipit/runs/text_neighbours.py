"""Texts that are nearest to tiles in the joint space: class prompts, and snippets of reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float32

from clipit.errors import ConfigError
from clipit.stores.embed import centred, unit
from clipit.stores.exact import BLOCK, best_rows

if TYPE_CHECKING:
    from clipit.workspace.workspace import Workspace


@dataclass(frozen=True)
class TextNeighbours:
    """Texts with their unit vectors.

    Attributes:
        texts: Texts.
        sources: Class of each prompt, or id of each snippet.
        vectors: Unit vector of each text, in the space of the model's image embeddings.
    """

    texts: Sequence[str]
    sources: Sequence[str]
    vectors: Float32[np.ndarray, "n dim"]

    def nearest(self, embeddings: Float32[np.ndarray, "q dim"], count: int) -> list[list[tuple[int, float]]]:
        """Return row and cosine similarity of the nearest texts of each embedding, the most similar first."""
        queries, matrix = torch.from_numpy(unit(embeddings)), torch.from_numpy(self.vectors)
        blocks = (
            (torch.arange(start, min(start + BLOCK, len(matrix))), queries @ matrix[start : start + BLOCK].T)
            for start in range(0, len(matrix), BLOCK)
        )
        rows = best_rows(blocks, len(queries), min(count, len(matrix)), torch.device("cpu")).numpy()
        found = []
        for query, places in zip(queries.numpy(), rows.tolist(), strict=True):
            scored = [(place, float(self.vectors[place] @ query)) for place in places]
            found.append(sorted(scored, key=lambda pair: (-pair[1], pair[0])))
        return found


def snippet_neighbours(
    workspace: "Workspace", vlm: str | None, mean: Float32[np.ndarray, " dim"] | None
) -> TextNeighbours:
    """Return the snippets of a configuration in the space of a model; called by all processes.

    Args:
        workspace: Workspace whose reports are embedded, if they are not yet.
        vlm: Fingerprint of the VLM whose joint space the model's embeddings are in; None for a model without one.
        mean: Mean that was subtracted from texts when the model was trained; None for none.

    Raises:
        ConfigError: The configuration names another VLM than that of the model.
    """
    if vlm is None or workspace.vlm.fingerprint != vlm:
        raise ConfigError(
            "the snippets are embedded by another VLM than the one that the model was trained with"
            if vlm
            else "this model has no joint space of images and texts",
            where=f"vlm.name = {workspace.config.vlm.name}",
            fix="name the configuration that the model was trained with, or leave out --snippets",
        )
    store = workspace.text_store()
    texts = workspace.snippet_texts()
    ids = [str(name) for name in store.ids.tolist()]
    vectors = np.concatenate([block for _, block in store.blocks()])
    return TextNeighbours([texts[name] for name in ids], ids, centred(unit(vectors), mean))
