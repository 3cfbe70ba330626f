"""The classifiers behind R: one that sees only the text that a tile finds, and the VLM's image probe.

Analysis, never training: no pair of a test tile is written, and nothing here reaches a student.
"""

import numpy as np
from jaxtyping import Float32, Int

from clipit.config.run import PairingConfig, RunConfig
from clipit.distributed import get_processes
from clipit.evaluation.predictions import Predictions
from clipit.evaluation.probes import linear_probe
from clipit.pairing.selection import Selection, find, judge, prepare, weights
from clipit.stores.embed import centred, unit
from clipit.stores.index import Index
from clipit.tiles.tileset import TileSet
from clipit.workspace.workspace import Workspace


def text_only_predictions(config: RunConfig, workspace: Workspace, seed: int) -> Predictions:
    """What the text alone says about the test tiles: a logistic regression on the snippets that tiles find.

    Each tile, of whatever split, stands for the mean of its `pairing.k` nearest snippets under the rules of `pairing`
    (its pairs, as training uses them); a tile that they leave without a pair is a zero vector. What the rules need to
    know of all tiles (a correction for hubs, mutual neighbours) they know of the training tiles alone, and
    `exclude_same_group` is for training tiles: `leaks` sees to the reports of other patients. The head is fitted on the
    training tiles whose labels the runs of this seed see, its strength chosen on their validation labels, and asked
    about the test tiles, whose snippets are searched for in memory. The paper's text classifier has two layers and a
    text tower that is trained, too; here the tower is frozen.

    Raises:
        ConfigError: There are no reports, or a rule needs an index that sees all scores.
        DataError: Too few labels for a probe, or a rule names an organ that no report has.
    """
    return _probe(config, workspace, seed, text=True)


def image_probe_predictions(config: RunConfig, workspace: Workspace, seed: int) -> Predictions:
    """The same head on the VLM's image embeddings: the second classifier that needs no text.

    Raises:
        DataError: Too few labels for a probe.
    """
    return _probe(config, workspace, seed, text=False)


def found_texts(
    index: Index,
    vectors: Float32[np.ndarray, "n d"],
    mean: Float32[np.ndarray, " d"] | None,
    k: int,
    block: int,
    *,
    selection: Selection | None = None,
    owners: Int[np.ndarray, " n"] | None = None,
) -> Float32[np.ndarray, "n d"]:
    """Mean of the snippets that each tile finds, to unit length (0 where it finds none); nothing is written.

    Args:
        index: Over the snippets.
        vectors: The tiles' joint embeddings.
        mean: Of the training tiles, where pairing is centred.
        k: Snippets per tile.
        block: Tiles searched at once.
        selection: Rules of the pairing, made ready; None: the plain nearest snippets.
        owners: Group numbers of the tiles, as the selection counts them; None: nobody's.
    """
    nobody = np.full(len(vectors), -1, dtype=np.int64)
    selection = selection or Selection(PairingConfig(), index, None, None, nobody)
    owners, temperature = nobody if owners is None else owners, selection.rules.score_temperature
    parts = [np.empty((0, vectors.shape[1]), dtype=np.float32)]
    for start in range(0, len(vectors), block):
        part = slice(start, start + block)
        found = find(selection, centred(vectors[part], mean), owners[part], k)
        kept = judge(found, selection.rules, selection.mutual) == 0
        rows, scores = found.rows[:, :-1], found.cosines[:, :-1]
        share = kept.astype(np.float32) if temperature is None else weights(scores, kept, temperature)
        parts.append(unit((index.vectors(np.maximum(rows, 0)) * share[..., None]).sum(axis=1).astype(np.float32)))
    return np.concatenate(parts)


def _probe(config: RunConfig, workspace: Workspace, seed: int, *, text: bool) -> Predictions:
    tiles = workspace.tiles(seed)
    parts = {split: tiles.of_split(split) for split in ("train", "validation", "test")}
    vectors: dict[str, Float32[np.ndarray, "_ d"]] = {}
    for split, part in parts.items():
        store = workspace.tile_store(split)
        vectors[split] = store.rows(store.positions(part.ids))
    if text:
        vectors = _texts(config.pairing, workspace, parts, vectors)
    train, validation, test = (parts[split] for split in ("train", "validation", "test"))
    probe = linear_probe(vectors["train"], train.labels, vectors["validation"], validation.labels, len(tiles.classes))
    return Predictions(
        test.ids, test.splits, test.labels, test.groups, tiles.classes, probe.probabilities(vectors["test"])
    )


def _texts(
    rules: PairingConfig,
    workspace: Workspace,
    parts: dict[str, TileSet],
    vectors: dict[str, Float32[np.ndarray, "_ d"]],
) -> dict[str, Float32[np.ndarray, "_ d"]]:
    """What the tiles of each split find, under the rules as training's pairs are made."""
    store = workspace.tile_store("train")
    sources, groups = workspace.pairing_facts()
    chosen = prepare(
        workspace.index, store, rules, block=rules.block, sources=sources, groups=groups, shown=get_processes().main
    )
    own = {"train": chosen.owners[store.positions(parts["train"].ids)]}
    return {
        split: found_texts(
            workspace.index, found, workspace.tile_mean, rules.k, rules.block, selection=chosen, owners=own.get(split)
        )
        for split, found in vectors.items()
    }
