"""Exact k-nearest-neighbour search: candidates from matrix products, rescored exactly, ties broken by id."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor

from clipit.distributed import get_processes
from clipit.errors import DataError, shortlist
from clipit.stores.embed import SHARD, Store
from clipit.stores.exact import BLOCK, best_rows, product
from clipit.stores.index import Index

SPARE = 4
"""Number of candidates beyond k, so that ties at rank k are included."""
DECIMALS = 6
"""Decimals to which scores are rounded, so that rounding errors do not decide ties."""


@dataclass(frozen=True)
class Keys:
    """Vectors for exact search, held in memory as in a flat index."""

    vectors: Float[Tensor, "s dim"]
    bias: Float64[np.ndarray, "s"]
    """Bias to subtract from the cosines of each key before ranking; inf excludes the key."""
    owners: Int[np.ndarray, "s"]
    """Owner of each key (a group, or the key itself), which is excluded for queries of the same owner; -1: no owner."""


def search(
    index: Index, queries: Float32[np.ndarray, "q dim"], k: int
) -> tuple[Int[np.ndarray, "q k"], Float32[np.ndarray, "q k"]]:
    """Find the rows and cosines of the k nearest snippets, nearest first, ties by lowest id.

    The index returns slightly more than k candidates. Their cosines are recomputed exactly, in an order of operations
    that does not depend on the batch size, and rounded before sorting.

    Args:
        index: Snippet index.
        queries: Unit vectors of the queries, centred like the index.
        k: Number of snippets per query; fewer are returned if the index is smaller.
    """
    wide = min(k + SPARE, len(index.ids))
    rows = index.candidates(queries, wide, min(k, wide))
    scores = cosines(queries, index.vectors(np.maximum(rows, 0)))
    scores[rows < 0] = -np.inf
    places = best_first(rows, scores, k)
    return np.take_along_axis(rows, places, 1), np.take_along_axis(scores, places, 1)


def cosines(
    queries: Float32[np.ndarray, "q dim"], vectors: Float32[np.ndarray, "q k dim"]
) -> Float32[np.ndarray, "q k"]:
    """Compute rounded cosines of unit vectors, in an order of operations that does not depend on the batch size."""
    return np.asarray(np.einsum("qd,qkd->qk", queries, vectors).round(DECIMALS), dtype=np.float32)


def best_first(rows: Int[np.ndarray, "q wide"], ranking: Float[np.ndarray, "q wide"], k: int) -> Int[np.ndarray, "q k"]:
    """Return the positions of the k candidates with the highest ranking, ties by lowest row (rows ascend by id)."""
    return np.asarray(np.lexsort((rows, -ranking), axis=1)[:, :k], dtype=np.int64)


def nearest(
    queries: Float32[np.ndarray, "q dim"], owners: Int[np.ndarray, "q"], keys: Keys, k: int
) -> Int[np.ndarray, "q k"]:
    """Find the rows of the k keys with the highest cosine minus bias, in no particular order, padded with -1.

    Args:
        queries: Unit vectors of the queries.
        owners: Owner of each query, whose keys are excluded; -1: no owner.
        keys: Vectors to search.
        k: Number of keys per query, at most the total number of keys.
    """
    device = keys.vectors.device
    vectors, query_owners = torch.from_numpy(queries).to(device), torch.from_numpy(owners).to(device)
    bias = torch.from_numpy(keys.bias.astype(np.float32)).to(device)
    key_owners = torch.from_numpy(keys.owners).to(device)
    any_owned = bool((owners >= 0).any() and (keys.owners >= 0).any())
    buffer = torch.empty(len(queries) * BLOCK, device=device)

    def scores() -> Iterator[tuple[Int[Tensor, "_"], Float[Tensor, "q _"]]]:
        for start in range(0, len(keys.vectors), BLOCK):
            part = slice(start, start + BLOCK)
            values = product(vectors, keys.vectors[part], buffer).sub_(bias[part])
            if any_owned:
                same_owner = (query_owners[:, None] == key_owners[part]) & (query_owners >= 0)[:, None]
                values.masked_fill_(same_owner, -torch.inf)
            yield torch.arange(start, start + values.shape[1], device=device), values

    return best_rows(scores(), len(queries), k, device).cpu().numpy()


def index_matrix(index: Index) -> Float[Tensor, "s dim"]:
    """Return all vectors of an index (centred if the index is) as float32 on this process's device."""
    matrix = np.empty((len(index.ids), index.store.dim), dtype=np.float32)
    for start in range(0, len(matrix), BLOCK):
        matrix[start : start + BLOCK] = index.vectors(np.arange(start, min(start + BLOCK, len(matrix))))
    return torch.from_numpy(matrix).to(get_processes().device)


def check_finite(store: Store, what: str) -> None:
    """Check that all embeddings of a store are finite; a single non-finite value would corrupt the mean and all scores.

    Raises:
        DataError: Some are not finite; the message lists their ids.
    """
    non_finite: list[str] = []
    for start, block in store.blocks(SHARD):
        if not np.isfinite(block.sum()):
            non_finite += store.ids[start + np.flatnonzero(~np.isfinite(block).all(axis=1))].tolist()
    if non_finite:
        raise DataError(
            f"{len(non_finite)} embeddings of {what} are not finite: {shortlist(non_finite)}",
            where=store.artifact.folder,
            fix="delete this folder and embed again with vlm.precision=fp32; if the error remains, check these inputs",
        )
