"""The bags of a run: text bags from pairs and the prompt dictionary, tile bags from neighbours."""

import numpy as np
from jaxtyping import Int

from clipit.config import Config
from clipit.embedding import centred
from clipit.errors import DataError, explain
from clipit.experiments.materials import Materials
from clipit.pairing.bags import nearest_prompts, text_bag
from clipit.pairing.tile_bags import tile_bags
from clipit.prompts.dictionary import load_dictionary
from clipit.tiles.tileset import TileSet
from clipit.training.teaching import Bag, Bags


def make_bags(config: Config, materials: Materials, train: TileSet) -> Bags:
    """Bags of all training tiles, as rows of the stores that their vectors are read from.

    Raises:
        DataError: Every text bag is empty.
    """
    b, index = config.bags, materials.index
    texts = text_bag(train.ids, materials.pairs, index.store, b.snippets, b.margin)
    prompts = _prompts(config, materials, train) if b.prompts else None
    if texts.empty.all() and prompts is None:
        raise DataError(
            explain("every text bag is empty", where="bags", fix="raise bags.margin, or loosen pairing.threshold")
        )
    counts = {"empty_text_bags": int(texts.empty.sum()), "pruned_snippets": texts.pruned}
    tiles = None
    if b.tiles:
        store = materials.tile_store("train")
        known = (train.groups != "").any()
        groups = dict(zip(train.ids.tolist(), train.groups.tolist(), strict=True)) if known else None
        found = tile_bags(
            materials.root,
            store,
            b.tiles,
            mean=materials.tile_mean,
            groups=groups,
            margin=b.margin,
            block=config.pairing.block,
        )
        tiles = Bag(store, materials.tile_mean, found.rows(train.ids, store))
        counts |= {"empty_tile_bags": len(found.empty), "pruned_tiles": found.pruned}
    return Bags(Bag(index.store, index.mean, texts.rows), prompts, tiles, counts)


def _prompts(config: Config, materials: Materials, train: TileSet) -> tuple[np.ndarray, Int[np.ndarray, "n p"]]:
    """Vectors of the dictionary's entries (mean over an entry's texts), and the nearest ones of each tile."""
    dictionary = load_dictionary(config.bags.dictionary)
    groups = [dictionary.texts(entry) for entry in sorted(dictionary.entries)]
    flat = centred(materials.encode([text for group in groups for text in group]), materials.text_mean)
    ends = np.cumsum([len(group) for group in groups])
    means = np.stack([part.mean(axis=0) for part in np.split(flat, ends[:-1])])
    vectors = (means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    store = materials.tile_store("train")
    tiles = centred(store.rows(store.positions(train.ids)), materials.tile_mean)
    return vectors, nearest_prompts(tiles, vectors, config.bags.prompts, config.pairing.block)
