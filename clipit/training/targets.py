"""What each training tile's projection is taught: one frozen vector per tile, looked up once."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float16, Float32, Int

from clipit.artifacts import fingerprint
from clipit.errors import DataError, explain
from clipit.pairing.pairs import Pairs
from clipit.stores.embed import Store, centred, unit
from clipit.stores.index import Index

_BLOCK = 65536

SnippetVectors = Callable[[Int[np.ndarray, "*shape"]], Float32[np.ndarray, "*shape dim"]]
"""Positions in the text store to the vectors that are distilled."""


@dataclass(frozen=True)
class Targets:
    """Unit vectors by row of the training tiles; rows that are not `valid` are not distilled."""

    vectors: Float16[np.ndarray, "n dim"]
    valid: Bool[np.ndarray, "n"]


@dataclass(frozen=True)
class Chosen:
    """The snippets of each tile: positions in the text store (-1: fewer than k) and their weights in the bag."""

    positions: Int[np.ndarray, "n k"]
    weights: Float32[np.ndarray, "n k"]

    @property
    def valid(self) -> Bool[np.ndarray, "n"]:
        """Which tiles have a snippet."""
        return np.asarray((self.positions >= 0).any(axis=1), dtype=np.bool_)


def chosen_snippets(tile_ids: np.ndarray, pairs: Pairs, store: Store) -> Chosen:
    """Each tile's paired snippets.

    Args:
        tile_ids: Training tiles.
        pairs: Their pairs; weights are equal unless the pairing made some.
        store: Text store in which the positions count.

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
    given = np.asarray(table.column("weight")) if "weight" in table.column_names else np.ones(len(rank))
    weights[rows[known], rank[known]] = given[known]
    chosen = Chosen(positions, weights)
    if not chosen.valid.any():
        raise DataError(
            explain(
                "no training tile has a pair",
                where=pairs.artifact.folder,
                fix="loosen the pairing, or pair these tiles",
            )
        )
    return chosen


def stored_vectors(store: Store, index: Index) -> SnippetVectors:
    """The snippets' embeddings, centred as the index is."""
    return lambda positions: centred(store.rows(positions), index.mean)


def bag_means(chosen: Chosen, vectors_of: SnippetVectors, dim: int) -> Targets:
    """The weighted mean of each tile's snippets, normalised."""
    n = len(chosen.positions)
    vectors = np.zeros((n, dim), dtype=np.float16)
    for start in range(0, n, _BLOCK):
        block = chosen.positions[start : start + _BLOCK]
        weights = chosen.weights[start : start + _BLOCK, :, None] * (block >= 0)[..., None]
        found = vectors_of(np.maximum(block, 0)) * weights
        vectors[start : start + _BLOCK] = unit(found.sum(axis=1).astype(np.float32))
    return Targets(vectors, chosen.valid)


def image_targets(tile_ids: np.ndarray, store: Store, mean: Float32[np.ndarray, "dim"] | None) -> Targets:
    """The VLM's own embedding of each tile, centred as for pairing (a control: no text in it)."""
    rows = store.positions(tile_ids)
    vectors = np.concatenate(
        [centred(store.rows(rows[s : s + _BLOCK]), mean).astype(np.float16) for s in range(0, len(rows), _BLOCK)]
    )
    return Targets(vectors, np.ones(len(tile_ids), dtype=bool))


def added(first: Targets, second: Targets) -> Targets:
    """The normalised sum of two targets; a tile without one of them has the other alone."""
    total = first.vectors.astype(np.float32) * first.valid[:, None]
    total += second.vectors.astype(np.float32) * second.valid[:, None]
    return Targets(unit(total).astype(np.float16), first.valid | second.valid)


def class_targets(
    probabilities: Float[np.ndarray, "n classes"], class_embeddings: Float32[np.ndarray, "classes dim"]
) -> Targets:
    """The prompts of each tile's most probable class: text, but none of a report."""
    vectors = class_embeddings[probabilities.argmax(axis=1)].astype(np.float16)
    return Targets(vectors, np.ones(len(probabilities), dtype=bool))


def shuffled(chosen: Chosen, seed: int) -> Chosen:
    """Every tile with the snippets of another one (a control)."""
    valid = chosen.valid
    order = np.arange(len(valid))
    order[valid] = np.flatnonzero(valid)[derangement(int(valid.sum()), seed)]
    return Chosen(chosen.positions[order], chosen.weights[order])


def random_snippets(chosen: Chosen, n_snippets: int, seed: int) -> Chosen:
    """As many snippets per tile, drawn evenly from the whole store (a control)."""
    drawn = np.random.default_rng([seed, 0x7C]).integers(0, n_snippets, size=chosen.positions.shape)
    return Chosen(np.where(chosen.positions >= 0, drawn, -1), chosen.weights)


def random_codes(store: Store, seed: int) -> SnippetVectors:
    """A random direction for each snippet id: the pairs stay right, the vectors mean nothing (a control)."""

    def vectors(positions: Int[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape dim"]:
        """One draw per snippet, by its id."""
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
    """A random order of n items in which none stays in its place (n > 1)."""
    order = np.random.default_rng([seed, 0x5F]).permutation(n)
    cycle = np.empty(n, dtype=np.int64)
    cycle[order] = np.roll(order, 1)  # each item takes the place of the one before it: one cycle through all
    return cycle
