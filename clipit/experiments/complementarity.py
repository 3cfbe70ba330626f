"""The classifiers behind R: one that sees only the text that a tile finds, and the VLM's image probe.

Analysis, never training: no pair of a test tile is written, and nothing here reaches a student.
"""

import numpy as np
from jaxtyping import Float, Float32

from clipit.config import Config
from clipit.embedding import centred, unit
from clipit.evaluation.predictions import Predictions
from clipit.evaluation.probes import linear_probe
from clipit.experiments.materials import Materials
from clipit.index import Index
from clipit.pairing.pairs import search


def text_only_predictions(config: Config, materials: Materials, seed: int) -> Predictions:
    """What the text alone says about the test tiles: a logistic regression on the snippets that tiles find.

    Each tile, of whatever split, stands for the mean of its `pairing.k` nearest snippets (its pairs, as training uses
    them). The head is fitted on the training tiles whose labels the runs of this seed see, its strength chosen on their
    validation labels, and asked about the test tiles, whose snippets are searched for in memory. The paper's text
    classifier has two layers and a text tower that is trained, too; here the tower is frozen.

    Raises:
        ConfigError: There are no reports.
        DataError: Too few labels for a probe.
    """
    return _probe(config, materials, seed, text=True)


def image_probe_predictions(config: Config, materials: Materials, seed: int) -> Predictions:
    """The same head on the VLM's image embeddings: the second classifier that needs no text.

    Raises:
        DataError: Too few labels for a probe.
    """
    return _probe(config, materials, seed, text=False)


def found_texts(
    index: Index, vectors: Float32[np.ndarray, "n d"], mean: Float32[np.ndarray, " d"] | None, k: int, block: int
) -> Float32[np.ndarray, "n d"]:
    """Mean of the k snippets nearest to each tile, to unit length; searched in memory, nothing is written.

    Args:
        index: Over the snippets.
        vectors: The tiles' joint embeddings.
        mean: Of the training tiles, where pairing is centred.
        k: Snippets per tile.
        block: Tiles searched at once.
    """
    parts = [np.empty((0, vectors.shape[1]), dtype=np.float32)]
    for start in range(0, len(vectors), block):
        rows, scores = search(index, centred(vectors[start : start + block], mean), k)
        known = np.isfinite(scores)[..., None]  # an approximate index may find fewer than k
        parts.append(unit((index.vectors(np.maximum(rows, 0)) * known).sum(axis=1).astype(np.float32)))
    return np.concatenate(parts)


def _probe(config: Config, materials: Materials, seed: int, *, text: bool) -> Predictions:
    tiles = materials.tiles(seed)
    parts = {split: tiles.of_split(split) for split in ("train", "validation", "test")}
    vectors: dict[str, Float[np.ndarray, "_ d"]] = {}
    for split, part in parts.items():
        store = materials.tile_store(split)
        vectors[split] = store.rows(store.positions(part.ids))
        if text:
            p, mean = config.pairing, materials.tile_mean
            vectors[split] = found_texts(materials.index, vectors[split], mean, p.k, p.block)
    train, validation, test = (parts[split] for split in ("train", "validation", "test"))
    probe = linear_probe(vectors["train"], train.labels, vectors["validation"], validation.labels, len(tiles.classes))
    return Predictions(
        test.ids, test.splits, test.labels, test.groups, tiles.classes, probe.probabilities(vectors["test"])
    )
