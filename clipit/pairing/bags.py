"""Text bags: the several snippets and prompts that stand for one training tile.

The way of CPLIP (CVPR 2024), with choices of our own: members are found by embedding, far ones are left out, and a bag
may be empty.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int

from clipit.errors import ConfigError, explain
from clipit.pairing.nearest import best_first
from clipit.pairing.pairs import Pairs
from clipit.stores.embed import Store


@dataclass(frozen=True)
class TextBag:
    """Snippets of each tile as rows of the text store, best first.

    Attributes:
        rows: -1 where there is none.
        weights: Sum to 1 in each bag that is not empty; 0 where there is no member.
        pruned: How many pairs were left out by the margin.
    """

    rows: Int[np.ndarray, "n k"]
    weights: Float32[np.ndarray, "n k"]
    pruned: int

    @property
    def empty(self) -> Bool[np.ndarray, "n"]:
        """Tiles without any snippet: they train without the term that bags make."""
        return np.asarray((self.rows < 0).all(axis=1), dtype=np.bool_)


def text_bag(tile_ids: np.ndarray, pairs: Pairs, store: Store, most: int, margin: float | None = None) -> TextBag:
    """The text bags of tiles: their paired snippets.

    Args:
        tile_ids: Tiles, in the order of the result.
        pairs: Their pairs; their weights count, and are equal unless the pairing made some.
        store: Text store whose rows count.
        most: Snippets per bag.
        margin: Snippets whose cosine is lower than the bag's best by more than this are left out.
    """
    table = pairs.table.filter(pa.array(np.asarray(pairs.table.column("rank")) < most))
    row_of = {tile: row for row, tile in enumerate(tile_ids.tolist())}
    rows = np.asarray([row_of.get(tile, -1) for tile in table.column("tile_id").to_pylist()], dtype=np.int64)
    scores = np.asarray(table.column("score"), dtype=np.float32)
    given = np.asarray(table.column("weight")) if "weight" in table.column_names else np.ones(len(rows))
    members = store.positions(np.asarray(table.column("snippet_id").to_pylist(), dtype=np.str_))
    ours = rows >= 0
    rows, scores, given, members = rows[ours], scores[ours], given[ours], members[ours]
    best = np.full(len(tile_ids), -np.inf, dtype=np.float32)
    np.maximum.at(best, rows, scores)
    near = np.ones(len(rows), dtype=np.bool_) if margin is None else scores >= best[rows] - np.float32(margin)
    share = np.where(near, given, 0.0)
    total = np.bincount(rows, share, minlength=len(tile_ids))
    placed = side_by_side(rows[near], np.flatnonzero(near), len(tile_ids))
    there = placed >= 0
    weights = np.where(there, share[placed] / total[rows[placed]], 0.0) if len(rows) else np.zeros(placed.shape)
    chosen = np.where(there, members[placed], -1) if len(rows) else placed
    return TextBag(chosen.astype(np.int64), weights.astype(np.float32), int((~near).sum()))


def nearest_prompts(
    tiles: Float32[np.ndarray, "n dim"], prompts: Float32[np.ndarray, "p dim"], k: int, block: int = 4096
) -> Int[np.ndarray, "n k"]:
    """Rows of the k prompts (of a dictionary, of classes) nearest to each tile, nearest first, ties by lowest row.

    Args:
        tiles: Unit vectors, centred as the tiles are for pairing.
        prompts: Unit vectors, centred as the snippets are.
        k: Prompts per tile.
        block: Tiles at once.

    Raises:
        ConfigError: There are fewer prompts than k.
    """
    if k > len(prompts):
        raise ConfigError(
            explain(
                f"{k} prompts per tile are asked for, there are {len(prompts)}", fix=f"ask for {len(prompts)} at most"
            )
        )
    found = [
        best_first(np.broadcast_to(np.arange(len(prompts)), scores.shape), scores, k)
        for scores in ((tiles[s : s + block] @ prompts.T).round(6) for s in range(0, len(tiles), block))
    ]
    return np.concatenate(found) if found else np.empty((0, k), dtype=np.int64)


def side_by_side(rows: Int[np.ndarray, "m"], values: Int[np.ndarray, "m"], n: int) -> Int[np.ndarray, "n most"]:
    """Values side by side in the row each belongs to, in their order; -1 where there is none."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    place = np.arange(len(rows)) - np.searchsorted(ordered, ordered, side="left")
    table = np.full((n, int(place.max(initial=0)) + 1), -1, dtype=np.int64)
    table[ordered, place] = values[order]
    return table
