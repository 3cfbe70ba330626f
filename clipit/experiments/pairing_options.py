"""The table of pairing rules for a configuration."""

from typing import TYPE_CHECKING

from clipit.pairing.options import compare_options, options_text

if TYPE_CHECKING:
    from clipit.experiments.materials import Materials


def pairing_options_text(materials: "Materials") -> str:
    """Pairing rules side by side, over the training tiles and the labels that the configuration keeps.

    Call it in all processes. Nothing is written; no validation or test tile and no hidden label is looked at.
    """
    config = materials.config
    tiles = materials.tiles(config.seed).of_split("train")
    sources, groups = materials.pairing_facts()
    some_labels = bool((tiles.labels >= 0).any())
    options = compare_options(
        materials.index,
        materials.tile_store("train"),
        config.pairing,
        sources=sources,
        groups=groups,
        labels=dict(zip(tiles.ids.tolist(), tiles.labels.tolist(), strict=True)) if some_labels else None,
        class_vectors=materials.class_embeddings() if some_labels else None,
    )
    notes = (
        "top 1 % hold: share of tiles whose snippet is among the most used 1 %; skewness: of how often each is used",
        "label of neighbours, label of text: agreement with the labels that this configuration keeps (training tiles)",
        "to choose a line, set pairing.correction, pairing.threshold and pairing.mutual",
    )
    return "\n".join([options_text(options), "", *notes])
