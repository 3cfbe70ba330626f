"""k-nearest-neighbour search: candidates from matrix products or an index, rescored exactly, ties broken by id."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor

from clipit.distributed import get_processes
from clipit.stores.exact import BLOCK, Adjust, nearest_rows
from clipit.stores.index import Index
from clipit.stores.stored_rows import StoredRows

SPARE = 4
"""Number of additional candidates, so that ties at rank k are included."""
DECIMALS = 6
"""Number of decimals to which scores are rounded, so that ties do not depend on rounding errors."""
_RESCORED = 2**20  # maximum number of float32 values of candidate embeddings in memory (4 MiB)


@dataclass(frozen=True)
class Keys:
    """Vectors for exact search, each with a bias and an owner."""

    stored: StoredRows
    bias: Float64[np.ndarray, "s"]
    """Bias to subtract from the cosines of each key before ranking; inf excludes the key."""
    owners: Int[np.ndarray, "s"]
    """Owner of each key (a group, or the key itself); queries with the same owner skip the key. -1 for no owner."""


def search(
    index: Index,
    queries: Float32[np.ndarray, "q dim"],
    k: int,
    *,
    block: int = BLOCK,
    shared: bool = False,
    exact: bool = False,
) -> tuple[Int[np.ndarray, "q k"], Float32[np.ndarray, "q k"]]:
    """Find the rows and cosines of the k nearest snippets, nearest first; ties are broken by the lowest id.

    The index returns slightly more than k candidates; an approximate index returns as many as its settings specify.
    The cosines of the candidates are recomputed exactly, in an order of operations that does not depend on the batch
    size, and rounded before sorting.

    Args:
        queries: Unit vectors of the queries, centred like the index.
        k: Number of snippets per query; fewer are returned if the index is smaller.
        block: Queries per matrix product with a Flat index.
        shared: Whether each process searches a part of a Flat index, with the same queries in all processes.
        exact: Whether to search exactly even if the index is approximate.
    """
    exact = exact or index.flat
    n_candidates = min(k + SPARE if exact else max(k, index.settings.candidates or k + SPARE), index.size)
    stored = index.stored()
    if exact:
        vectors = stored.shards(shards_of_process(stored, shared))
        rows = nearest_rows(queries, vectors, n_candidates, block=block, faiss=index.searched_by_faiss, shared=shared)
    else:
        rows = index.candidates(queries, n_candidates, min(k, n_candidates))
    scores = exact_cosines(queries, stored, rows)
    order = best_first(rows, scores, k)
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)


def shards_of_process(stored: StoredRows, shared: bool) -> range:
    """Return the shards that this process searches: its share, or all shards."""
    processes, shards = get_processes(), stored.store.shards
    return range(processes.rank, shards, processes.count) if shared else range(shards)


def exact_cosines(
    queries: Float32[np.ndarray, "q dim"], stored: StoredRows, rows: Int[np.ndarray, "q k"]
) -> Float32[np.ndarray, "q k"]:
    """Compute the rounded cosines of queries with their candidates; -inf where the candidate row is -1.

    The order of operations does not depend on the number of queries. Vectors are read in the order of the store, in
    blocks of bounded size.
    """
    scores = np.full(rows.shape, -np.inf, dtype=np.float32)
    query, column = np.nonzero(rows >= 0)
    candidates = rows[query, column]
    order = np.argsort(stored.positions[candidates], kind="stable")
    size = max(1, _RESCORED // queries.shape[1])
    for start in range(0, len(order), size):
        block = order[start : start + size]
        cosines = np.einsum("pd,pd->p", queries[query[block]], stored.vectors(candidates[block]))
        scores[query[block], column[block]] = cosines.round(DECIMALS)
    return scores


def best_first(rows: Int[np.ndarray, "q n"], ranking: Float[np.ndarray, "q n"], k: int) -> Int[np.ndarray, "q k"]:
    """Return the positions of the k candidates with the highest ranking score; ties are broken by the lowest row."""
    return np.asarray(np.lexsort((rows, -ranking), axis=1)[:, :k], dtype=np.int64)


def nearest(
    queries: Float32[np.ndarray, "q dim"],
    owners: Int[np.ndarray, "q"],
    keys: Keys,
    k: int,
    *,
    block: int = BLOCK,
    shared: bool = False,
) -> Int[np.ndarray, "q k"]:
    """Find the rows of the k keys with the highest cosine minus bias, in no particular order, padded with -1.

    Args:
        queries: Unit vectors of the queries.
        owners: Owner of each query; keys with the same owner are excluded. -1 for no owner.
        k: Number of keys per query, at most the total number of keys.
        block: Queries per matrix product.
        shared: Whether each process searches a part of the keys, with the same queries in all processes.
    """
    vectors = keys.stored.shards(shards_of_process(keys.stored, shared))
    return nearest_rows(queries, vectors, k, block=block, adjust=_adjust(owners, keys), shared=shared)


def nearest_among(
    queries: Float32[np.ndarray, "q dim"], keys: Keys, rows: Int[np.ndarray, "n"], k: int, block: int = BLOCK
) -> Int[np.ndarray, "q k"]:
    """Find the k of the given keys with the highest cosine minus bias, regardless of owner, padded with -1."""
    device = get_processes().device
    blocks = (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))
    vectors = (
        (torch.from_numpy(part).to(device), torch.from_numpy(keys.stored.vectors(part)).to(device)) for part in blocks
    )
    no_owners: Int[np.ndarray, "q"] = np.full(len(queries), -1, dtype=np.int64)
    return nearest_rows(queries, vectors, k, block=block, adjust=_adjust(no_owners, keys))


def _adjust(owners: Int[np.ndarray, "q"], keys: Keys) -> Adjust:
    """Return a function that subtracts biases and excludes the keys of each query's owner."""
    device = get_processes().device
    query_owners = torch.from_numpy(owners).to(device)
    any_owned = bool((owners >= 0).any() and (keys.owners >= 0).any())

    def adjust(part: slice, rows: Int[Tensor, "_"], values: Float[Tensor, "q _"]) -> None:
        keys_of_part = rows.cpu().numpy()
        values.sub_(torch.from_numpy(keys.bias[keys_of_part].astype(np.float32)).to(device))
        if any_owned:
            key_owners, query_owner = torch.from_numpy(keys.owners[keys_of_part]).to(device), query_owners[part, None]
            values.masked_fill_((query_owner == key_owners) & (query_owner >= 0), -torch.inf)

    return adjust
