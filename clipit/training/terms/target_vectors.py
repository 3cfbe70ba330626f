"""Target vectors for distillation: mean snippet embeddings, image embeddings, class prompts, and controls."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float16, Float32, Int

from clipit.errors import DataError
from clipit.output_files.artifacts import fingerprint
from clipit.pairing.pairs import Pairs
from clipit.stores.embed import Store
from clipit.stores.index import Index
from clipit.vectors import centred, unit

_BLOCK = 65536

SnippetVectors = Callable[[Int[np.ndarray, "*shape"]], Float32[np.ndarray, "*shape dim"]]
"""Function from positions in the text store to the vectors that represent these snippets."""


@dataclass(frozen=True)
class Targets:
    """Unit vectors, one row per training tile; rows that are not `valid` are not used."""

    vectors: Float16[np.ndarray, "n dim"]
    valid: Bool[np.ndarray, "n"]


@dataclass(frozen=True)
class PairedSnippets:
    """Snippets paired with each tile.

    Attributes:
        positions: Positions in the text store, padded with -1.
        weights: Weights of the snippets in the target.
    """

    positions: Int[np.ndarray, "n k"]
    weights: Float32[np.ndarray, "n k"]

    @property
    def valid(self) -> Bool[np.ndarray, "n"]:
        """Mask of the tiles that have a snippet."""
        return np.asarray((self.positions >= 0).any(axis=1), dtype=np.bool_)


def paired_snippets(tile_ids: np.ndarray, pairs: Pairs, store: Store) -> PairedSnippets:
    """Collect each tile's paired snippets.

    Args:
        pairs: Pairs of the training tiles; weights are equal unless `pairing.score_temperature` is set.
        store: Text store that the positions refer to.

    Raises:
        DataError: No tile has a pair.
    """
    table = pairs.table
    rank = np.asarray(table.column("rank"))
    k = int(rank.max()) + 1 if len(rank) else 1
    row_of = {tile: row for row, tile in enumerate(tile_ids.tolist())}
    rows = np.array([row_of.get(tile, -1) for tile in table.column("tile_id").to_pylist()], dtype=np.int64)
    positions: Int[np.ndarray, "n k"] = np.full((len(tile_ids), k), -1, dtype=np.int64)
    weights: Float32[np.ndarray, "n k"] = np.zeros((len(tile_ids), k), dtype=np.float32)
    known = rows >= 0
    positions[rows[known], rank[known]] = store.positions(table.column("snippet_id").to_numpy().astype(np.str_))[known]
    pair_weights = np.asarray(table.column("weight")) if "weight" in table.column_names else np.ones(len(rank))
    weights[rows[known], rank[known]] = pair_weights[known]
    paired = PairedSnippets(positions, weights)
    if not paired.valid.any():
        raise DataError(
            "no training tile has a pair",
            where=pairs.artifact.folder,
            fix="relax the pairing (threshold, margin, mutual)",
        )
    return paired


def stored_vectors(store: Store, index: Index) -> SnippetVectors:
    """Return a function that looks up snippet embeddings, centred like the index."""
    return lambda positions: centred(store.rows(positions), index.mean)


def mean_targets(paired: PairedSnippets, vectors_of: SnippetVectors, dim: int) -> Targets:
    """Compute the normalised weighted mean of each tile's snippet vectors."""
    n = len(paired.positions)
    vectors = np.zeros((n, dim), dtype=np.float16)
    for start in range(0, n, _BLOCK):
        block = paired.positions[start : start + _BLOCK]
        weights = paired.weights[start : start + _BLOCK, :, None] * (block >= 0)[..., None]
        weighted = vectors_of(np.maximum(block, 0)) * weights
        vectors[start : start + _BLOCK] = unit(weighted.sum(axis=1).astype(np.float32))
    return Targets(vectors, paired.valid)


def image_targets(tile_ids: np.ndarray, store: Store, mean: Float32[np.ndarray, "dim"] | None) -> Targets:
    """Return the VLM's embedding of each tile, centred as for pairing (control without text)."""
    rows = store.positions(tile_ids)
    vectors = np.concatenate(
        [centred(store.rows(rows[s : s + _BLOCK]), mean).astype(np.float16) for s in range(0, len(rows), _BLOCK)]
    )
    return Targets(vectors, np.ones(len(tile_ids), dtype=bool))


def sum_targets(first: Targets, second: Targets) -> Targets:
    """Compute the normalised sum of two targets; a tile with only one target gets that one."""
    total = first.vectors.astype(np.float32) * first.valid[:, None]
    total += second.vectors.astype(np.float32) * second.valid[:, None]
    return Targets(unit(total).astype(np.float16), first.valid | second.valid)


def class_targets(
    probabilities: Float[np.ndarray, "n classes"], class_embeddings: Float32[np.ndarray, "classes dim"]
) -> Targets:
    """Return the prompt embedding of each tile's most probable class (control with text that is not from reports)."""
    vectors = class_embeddings[probabilities.argmax(axis=1)].astype(np.float16)
    return Targets(vectors, np.ones(len(probabilities), dtype=bool))


def shuffle_snippets(paired: PairedSnippets, seed: int) -> PairedSnippets:
    """Assign each tile the snippets of another tile (control)."""
    valid = paired.valid
    order = np.arange(len(valid))
    order[valid] = np.flatnonzero(valid)[derangement(int(valid.sum()), seed)]
    return PairedSnippets(paired.positions[order], paired.weights[order])


def draw_random_snippets(paired: PairedSnippets, n_snippets: int, seed: int) -> PairedSnippets:
    """Replace each tile's snippets with the same number drawn uniformly from the whole store (control)."""
    drawn = np.random.default_rng([seed, 0x7C]).integers(0, n_snippets, size=paired.positions.shape)
    return PairedSnippets(np.where(paired.positions >= 0, drawn, -1), paired.weights)


def random_codes(store: Store, seed: int) -> SnippetVectors:
    """Assign each snippet id a random direction (control with correct pairs but meaningless vectors)."""

    def vectors(positions: Int[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape dim"]:
        distinct, inverse = np.unique(positions, return_inverse=True)
        draws = np.stack(
            [
                np.random.default_rng(int(fingerprint([seed, str(store.ids[row])]), 16)).standard_normal(store.dim)
                for row in distinct.tolist()
            ]
        )
        return unit(draws.astype(np.float32))[inverse.reshape(positions.shape)]

    return vectors


def derangement(n: int, seed: int) -> Int[np.ndarray, "n"]:
    """Draw a random permutation of n > 1 items that has no fixed point."""
    order = np.random.default_rng([seed, 0x5F]).permutation(n)
    cycle = np.empty(n, dtype=np.int64)
    cycle[order] = np.roll(order, 1)  # each item takes the place of its predecessor: one cycle through all items
    return cycle
