"""The table of pairing rules for a configuration."""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float32

from clipit.evaluation.zero_shot import prompt_embeddings
from clipit.pairing.options import compare_options, options_text
from clipit.stores.index import Index, build_index

if TYPE_CHECKING:
    from clipit.workspace.workspace import Workspace


def pairing_options_text(workspace: "Workspace") -> str:
    """Pairing rules side by side, over the training tiles and the labels that the configuration keeps.

    Call it in all processes. No pair is written; no validation or test tile and no hidden label is looked at.
    """
    config = workspace.config
    tiles = workspace.tiles(config.seed).of_split("train")
    some_labels = bool((tiles.labels >= 0).any())
    options = compare_options(
        workspace.index,
        workspace.tile_store("train"),
        config.pairing,
        sources=pq.read_table(workspace.snippets.file("snippet_sources.parquet")),
        groups=dict(zip(tiles.ids.tolist(), tiles.groups.tolist(), strict=True)),
        labels=dict(zip(tiles.ids.tolist(), tiles.labels.tolist(), strict=True)) if some_labels else None,
        class_vectors=workspace.class_embeddings() if some_labels else None,
        other=_otherwise_centred(workspace, some_labels),
    )
    notes = (
        "top 1 % hold: share of tiles whose snippet is among the most used 1 %; skewness: of how often each is used",
        "label of neighbours, label of text: agreement with the labels that this configuration keeps (training tiles)",
        "cosines of centred and of other embeddings cannot be compared; a margin is in the score that ranks",
        "to choose a line, set pairing.correction, centring, organs, exclude_same_group, threshold, margin and mutual",
    )
    return "\n".join([options_text(options), "", *notes])


def _otherwise_centred(
    workspace: "Workspace", prompted: bool
) -> tuple[Index, Float32[np.ndarray, "classes dim"] | None]:
    """An index of the same snippets with centring turned round, and the class prompts for it (None: not wanted)."""
    p, prompts = workspace.config.pairing, workspace.prompts
    index = build_index(
        workspace.root, workspace.text_store(), key=p.index, centring=not p.centring, backend=p.backend, nprobe=p.nprobe
    )
    if prompts is None or not prompted:
        return index, None
    return index, prompt_embeddings(prompts, workspace.encode, index.mean, workspace.all_tiles.classes)
