"""Texts nearest to tiles in the joint space: class prompts and report snippets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float32, Int64

from clipit.distributed import get_processes
from clipit.errors import ConfigError
from clipit.stores.exact import BLOCK, nearest_rows
from clipit.vectors import centred, unit

if TYPE_CHECKING:
    from clipit.workspace.workspace import Workspace


@dataclass(frozen=True)
class TextNeighbours:
    """Texts with their unit vectors.

    Attributes:
        sources: Class of each prompt, or id of each snippet.
        read: Function from rows to unit vectors in the space of the model's image embeddings, possibly read from disk.
    """

    texts: Sequence[str]
    sources: Sequence[str]
    read: Callable[[Int64[np.ndarray, "n"]], Float32[np.ndarray, "n dim"]]

    def nearest(self, embeddings: Float32[np.ndarray, "q dim"], count: int) -> list[list[tuple[int, float]]]:
        """Return the row and cosine similarity of each embedding's nearest texts, the most similar first."""
        queries, device, total = unit(embeddings), get_processes().device, len(self.texts)
        blocks = (np.arange(start, min(start + BLOCK, total)) for start in range(0, total, BLOCK))
        vectors = (
            (torch.from_numpy(positions).to(device), torch.from_numpy(self.read(positions)).to(device))
            for positions in blocks
        )
        nearest = []
        for query, rows in zip(queries, nearest_rows(queries, vectors, min(count, total)), strict=True):
            scored = zip(rows.tolist(), (self.read(rows) @ query).tolist(), strict=True)
            nearest.append(sorted(scored, key=lambda pair: (-pair[1], pair[0])))
        return nearest


def snippet_neighbours(
    workspace: "Workspace", vlm: str | None, mean: Float32[np.ndarray, " dim"] | None
) -> TextNeighbours:
    """Return the snippets of a configuration in a model's joint space; must be called by all processes.

    Args:
        workspace: Workspace with reports, which are embedded if necessary.
        vlm: Fingerprint of the VLM whose joint space the model uses; None for a model without a joint space.
        mean: Mean subtracted from text embeddings when the model was trained; None if none was subtracted.

    Raises:
        ConfigError: The configuration and the model use different VLMs.
    """
    if vlm is None or workspace.vlm.fingerprint != vlm:
        raise ConfigError(
            "the VLM that embeds the snippets is not the one that the model was trained with"
            if vlm
            else "this model has no joint space of images and texts",
            where=f"vlm.name = {workspace.config.vlm.name}",
            fix="use the configuration that the model was trained with, or remove --snippets",
        )
    store = workspace.text_store()
    texts = workspace.snippet_texts()
    ids = [str(name) for name in store.ids.tolist()]
    return TextNeighbours([texts[name] for name in ids], ids, lambda rows: centred(unit(store.rows(rows)), mean))
