"""Text bags: the snippets and prompts of each training tile.

Bags follow CPLIP (CVPR 2024), except that members are chosen by their embeddings, distant members are dropped, and a
bag may be empty.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int

from clipit.errors import ConfigError, counted
from clipit.pairing.nearest import best_first
from clipit.pairing.pairs import Pairs
from clipit.stores.embed import Store


@dataclass(frozen=True)
class TextBags:
    """Snippets of each tile, best first.

    Attributes:
        rows: Indices into the text store, one row per tile, padded with -1.
        weights: Weights, which sum to 1 in each non-empty bag; 0 for padding.
        pruned: Number of pairs dropped by the margin.
    """

    rows: Int[np.ndarray, "n k"]
    weights: Float32[np.ndarray, "n k"]
    pruned: int

    @property
    def empty(self) -> Bool[np.ndarray, "n"]:
        """Mask of tiles without snippets; the bag loss skips these tiles."""
        return np.asarray((self.rows < 0).all(axis=1), dtype=np.bool_)


def text_bags(
    tile_ids: np.ndarray, pairs: Pairs, store: Store, max_snippets: int, margin: float | None = None
) -> TextBags:
    """Collect the text bags of tiles from their pairs.

    Args:
        tile_ids: Tile ids, in the order of the result.
        pairs: Pairs of the tiles, equally weighted unless they have weights.
        max_snippets: Maximum number of snippets per bag.
        margin: Maximum difference between a snippet's cosine and the highest in the bag; snippets beyond it are
            dropped. None to keep all.
    """
    table = pairs.table.filter(pa.array(np.asarray(pairs.table.column("rank")) < max_snippets))
    row_of = {tile: row for row, tile in enumerate(tile_ids.tolist())}
    rows = np.asarray([row_of.get(tile, -1) for tile in table.column("tile_id").to_pylist()], dtype=np.int64)
    scores = np.asarray(table.column("score"), dtype=np.float32)
    pair_weights = np.asarray(table.column("weight")) if "weight" in table.column_names else np.ones(len(rows))
    members = store.positions(np.asarray(table.column("snippet_id").to_pylist(), dtype=np.str_))
    known = rows >= 0
    rows, scores, pair_weights, members = rows[known], scores[known], pair_weights[known], members[known]
    best = np.full(len(tile_ids), -np.inf, dtype=np.float32)
    np.maximum.at(best, rows, scores)
    near = np.ones(len(rows), dtype=np.bool_) if margin is None else scores >= best[rows] - np.float32(margin)
    share = np.where(near, pair_weights, 0.0)
    total = np.bincount(rows, share, minlength=len(tile_ids))
    pair_of = gather_by_row(rows[near], np.flatnonzero(near), len(tile_ids))  # pair of each slot, -1 for padding
    filled = pair_of >= 0
    weights = np.where(filled, share[pair_of] / total[rows[pair_of]], 0.0) if len(rows) else np.zeros(pair_of.shape)
    snippets = np.where(filled, members[pair_of], -1) if len(rows) else pair_of
    return TextBags(snippets.astype(np.int64), weights.astype(np.float32), int((~near).sum()))


def nearest_prompts(
    tiles: Float32[np.ndarray, "n dim"], prompts: Float32[np.ndarray, "p dim"], k: int, block: int = 4096
) -> Int[np.ndarray, "n k"]:
    """Find the k nearest prompts (of a dictionary or of classes) for each tile, nearest first; ties are broken by row.

    Args:
        tiles: Unit-norm tile embeddings, centred as for pairing.
        prompts: Unit-norm prompt embeddings, centred like the snippets.
        block: Number of tiles per block, to bound memory.

    Raises:
        ConfigError: There are fewer prompts than k.
    """
    if k > len(prompts):
        raise ConfigError(
            f"{counted(k, 'prompt')} per tile requested, but there are only {len(prompts)}",
            fix=f"use at most {len(prompts)}",
        )
    rows = [
        best_first(np.broadcast_to(np.arange(len(prompts)), scores.shape), scores, k)
        for scores in ((tiles[s : s + block] @ prompts.T).round(6) for s in range(0, len(tiles), block))
    ]
    return np.concatenate(rows) if rows else np.empty((0, k), dtype=np.int64)


def gather_by_row(rows: Int[np.ndarray, "m"], values: Int[np.ndarray, "m"], n: int) -> Int[np.ndarray, "n most"]:
    """Gather the values of each row, keeping their order, padded with -1."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    column = np.arange(len(rows)) - np.searchsorted(ordered, ordered, side="left")
    table = np.full((n, int(column.max(initial=0)) + 1), -1, dtype=np.int64)
    table[ordered, column] = values[order]
    return table
