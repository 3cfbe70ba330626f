"""The bags of a run: text bags from pairs and the prompt dictionary, tile bags from neighbours."""

import numpy as np

from clipit.config.run import RunConfig
from clipit.errors import ConfigError, DataError, explain
from clipit.pairing.bags import nearest_prompts, text_bag
from clipit.pairing.tile_bags import tile_bags
from clipit.prompts.dictionary import load_dictionary
from clipit.prompts.prompt_set import check_classes
from clipit.stores.embed import centred
from clipit.tiles.tileset import TileSet
from clipit.training.teaching import Bag, Bags, PromptMembers
from clipit.workspace.workspace import Workspace


def make_bags(config: RunConfig, workspace: Workspace, train: TileSet) -> Bags:
    """Bags of all training tiles, as rows of the stores that their vectors are read from.

    Raises:
        ConfigError: Weights are asked for that the pairing does not make.
        DataError: Every text bag is empty.
    """
    b = config.bags
    if b.weighted and config.pairing.score_temperature is None:
        raise ConfigError(
            explain(
                "the pairs have no weights that the bags could take",
                where="bags.weighted",
                fix="set pairing.score_temperature (0.1), or bags.weighted=false",
            )
        )
    index = workspace.index
    texts = text_bag(train.ids, workspace.pairs, index.store, b.snippets, b.margin)
    prompts = _prompts(config, workspace, train) if b.prompts or b.class_prompts else None
    if texts.empty.all() and prompts is None:
        raise DataError(
            explain("every text bag is empty", where="bags", fix="raise bags.margin, or loosen pairing.threshold")
        )
    empty = texts.empty if prompts is None else texts.empty & ~prompts.there.any(axis=1)
    counts = {
        "empty_text_bags": int(empty.sum()),  # their tiles train without the term
        "without_snippets": int(texts.empty.sum()),
        "pruned_snippets": texts.pruned,
    }
    tiles = None
    if b.tiles:
        store = workspace.tile_store("train")
        known = (train.groups != "").any()
        groups = dict(zip(train.ids.tolist(), train.groups.tolist(), strict=True)) if known else None
        found = tile_bags(
            workspace.root,
            store,
            b.tiles,
            mean=workspace.tile_mean,
            pairs=workspace.pairs if b.text_neighbours else None,
            index=index if b.text_neighbours else None,
            groups=groups,
            margin=b.margin,
            block=config.pairing.block,
        )
        tiles = Bag(store, workspace.tile_mean, found.rows(train.ids, store))
        counts |= {"empty_tile_bags": len(found.empty), "pruned_tiles": found.pruned}
    weights = texts.weights if b.weighted else None
    return Bags(Bag(index.store, index.mean, texts.rows), prompts, tiles, counts, weights)


def _prompts(config: RunConfig, workspace: Workspace, train: TileSet) -> PromptMembers:
    """The nearest texts of the dictionary and of the class prompts; far ones are left out as far snippets are."""
    b, store = config.bags, workspace.tile_store("train")
    tiles = centred(store.rows(store.positions(train.ids)), workspace.tile_mean)
    pools: list[tuple[list[str], int]] = []
    if b.prompts:
        dictionary = load_dictionary(b.dictionary)
        pools.append(([text for entry in sorted(dictionary.entries) for text in dictionary.texts(entry)], b.prompts))
    if b.class_prompts:
        if workspace.prompts is None:
            raise ConfigError(
                explain("class prompts need a prompt set", where="bags.class_prompts", fix="set prompts: NAME or FILE")
            )
        check_classes(workspace.prompts, workspace.all_tiles.classes)
        pools.append(
            ([t for name in workspace.prompts.classes for t in workspace.prompts.texts(name)], b.class_prompts)
        )
    parts: list[np.ndarray] = []
    nearest: list[np.ndarray] = []
    for texts, most in pools:
        found = centred(workspace.encode(texts), workspace.text_mean)
        nearest_here = nearest_prompts(tiles, found, min(most, len(found)), config.pairing.block)
        nearest.append(nearest_here + sum(len(part) for part in parts))
        parts.append(found)
    vectors, rows = np.concatenate(parts), np.concatenate(nearest, axis=1)
    codes = np.unique([text for texts, _ in pools for text in texts], return_inverse=True)[1].astype(np.int64)
    there = np.ones(rows.shape, dtype=np.bool_)
    if b.margin is not None:
        scores = np.einsum("nd,npd->np", tiles, vectors[rows])
        there = scores >= scores.max(axis=1, keepdims=True) - b.margin
    return PromptMembers(vectors, codes, rows, there)
