"""Texts that are nearest to tiles in the joint space: class prompts, and snippets of reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float32

from clipit.distributed import get_processes
from clipit.errors import ConfigError
from clipit.stores.embed import centred, unit
from clipit.stores.exact import BLOCK, nearest_rows

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
        queries, device = unit(embeddings), get_processes().device
        starts = range(0, len(self.vectors), BLOCK)
        parts = (np.arange(start, min(start + BLOCK, len(self.vectors))) for start in starts)
        vectors = (
            (torch.from_numpy(part).to(device), torch.from_numpy(self.vectors[part]).to(device)) for part in parts
        )
        rows = nearest_rows(queries, vectors, min(count, len(self.vectors)))
        found = []
        for query, places in zip(queries, rows.tolist(), strict=True):
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
