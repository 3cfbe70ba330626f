"""What each training tile's projection is taught: one frozen vector per tile, looked up once."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float16, Float32, Int

from clipit.embedding import Store, centred, unit
from clipit.errors import DataError, explain
from clipit.index import Index
from clipit.pairing.pairs import Pairs

_BLOCK = 65536


@dataclass(frozen=True)
class Targets:
    """Unit vectors by row of the training tiles; rows that are not `valid` are not distilled."""

    vectors: Float16[np.ndarray, "n dim"]
    valid: Bool[np.ndarray, "n"]


def text_targets(tile_ids: np.ndarray, pairs: Pairs, index: Index, store: Store, shuffle_seed: int | None) -> Targets:
    """The mean of each tile's paired snippets, normalised.

    Args:
        tile_ids: Training tiles.
        pairs: Their pairs.
        index: Its mean centres the texts.
        store: Text store to take the vectors from: the index's own, or one of altered texts with the same ids.
        shuffle_seed: Give every tile the snippets of another one (a control); None: its own.

    Raises:
        DataError: No tile has a pair.
    """
    table = pairs.table
    rank = np.asarray(table.column("rank"))
    k = int(rank.max()) + 1 if len(rank) else 0
    position = {tile: row for row, tile in enumerate(tile_ids.tolist())}
    rows = np.array([position.get(tile, -1) for tile in table.column("tile_id").to_pylist()], dtype=np.int64)
    snippets = store.positions(table.column("snippet_id").to_numpy().astype(np.str_))
    chosen: Int[np.ndarray, "n k"] = np.full((len(tile_ids), max(k, 1)), -1, dtype=np.int64)
    known = rows >= 0
    chosen[rows[known], rank[known]] = snippets[known]
    valid = chosen[:, 0] >= 0
    if not valid.any():
        raise DataError(
            explain(
                "no training tile has a pair",
                where=pairs.artifact.folder,
                fix="loosen the pairing, or pair these tiles",
            )
        )
    if shuffle_seed is not None:
        chosen[valid] = chosen[valid][derangement(int(valid.sum()), shuffle_seed)]
    vectors = np.zeros((len(tile_ids), store.dim), dtype=np.float16)
    for start in range(0, len(tile_ids), _BLOCK):
        block = chosen[start : start + _BLOCK]
        found = centred(store.rows(np.maximum(block, 0)), index.mean) * (block >= 0)[..., None]
        vectors[start : start + _BLOCK] = unit(found.sum(axis=1).astype(np.float32))
    return Targets(vectors, valid)


def image_targets(tile_ids: np.ndarray, store: Store, mean: Float32[np.ndarray, "dim"] | None) -> Targets:
    """The VLM's own embedding of each tile, centred as for pairing (a control: no text in it)."""
    rows = store.positions(tile_ids)
    vectors = np.concatenate(
        [centred(store.rows(rows[s : s + _BLOCK]), mean).astype(np.float16) for s in range(0, len(rows), _BLOCK)]
    )
    return Targets(vectors, np.ones(len(tile_ids), dtype=bool))


def derangement(n: int, seed: int) -> Int[np.ndarray, "n"]:
    """A random order of n items in which none stays in its place (n > 1)."""
    order = np.random.default_rng([seed, 0x5F]).permutation(n)
    cycle = np.empty(n, dtype=np.int64)
    cycle[order] = np.roll(order, 1)  # each item takes the place of the one before it: one cycle through all
    return cycle
