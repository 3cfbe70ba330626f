"""The k nearest snippets of tiles: candidates by matrix products, scores computed again exactly, ties by id."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int
from torch import Tensor

from clipit.distributed import get_processes
from clipit.errors import DataError, explain, shortlist
from clipit.stores.embed import SHARD, Store
from clipit.stores.index import Index

SPARE = 4
"""Candidates beyond k, so that ties at the edge are seen."""
DECIMALS = 6
"""Scores nearer than this are ties; float error must not decide."""
CHUNK = 4096
"""Keys multiplied at once; with the block of queries it bounds the memory."""


@dataclass(frozen=True)
class Keys:
    """What is searched exactly: all vectors of one side, held in memory as a Flat index holds them."""

    vectors: Float[Tensor, "s dim"]
    bias: Float64[np.ndarray, "s"]
    """Subtracted from every cosine with this key before ranking; inf: never found."""
    owners: Int[np.ndarray, "s"]
    """Keys with the owner of a query (a group, or the query itself) are not found by it; -1: nobody's."""


def search(
    index: Index, queries: Float32[np.ndarray, "q dim"], k: int
) -> tuple[Int[np.ndarray, "q k"], Float32[np.ndarray, "q k"]]:
    """Rows of the index and cosines of the k nearest snippets, nearest first, ties by lowest id.

    The index proposes a few more than k; their cosines are computed again, exactly and in the same order of
    operations for every batch size, and rounded before sorting.

    Args:
        index: What to search.
        queries: Unit vectors, centred as the index is.
        k: Snippets per query; fewer come back when the index holds fewer.
    """
    wide = min(k + SPARE, len(index.ids))
    rows = index.candidates(queries, wide)
    scores = cosines(queries, index.vectors(np.maximum(rows, 0)))
    scores[rows < 0] = -np.inf
    places = best_first(rows, scores, k)
    return np.take_along_axis(rows, places, 1), np.take_along_axis(scores, places, 1)


def cosines(
    queries: Float32[np.ndarray, "q dim"], vectors: Float32[np.ndarray, "q k dim"]
) -> Float32[np.ndarray, "q k"]:
    """Products of unit vectors in one order of operations for every batch size, rounded."""
    return np.asarray(np.einsum("qd,qkd->qk", queries, vectors).round(DECIMALS), dtype=np.float32)


def best_first(rows: Int[np.ndarray, "q wide"], ranking: Float[np.ndarray, "q wide"], k: int) -> Int[np.ndarray, "q k"]:
    """Places of the first k candidates, highest ranking first, ties by lowest row (rows ascend by id)."""
    return np.asarray(np.lexsort((rows, -ranking), axis=1)[:, :k], dtype=np.int64)


def nearest(
    queries: Float32[np.ndarray, "q dim"], owners: Int[np.ndarray, "q"], keys: Keys, k: int
) -> Int[np.ndarray, "q k"]:
    """Rows of the k keys with the highest cosine less bias, in no certain order; -1 where fewer are allowed.

    Args:
        queries: Unit vectors.
        owners: Keys of the same owner are left out; -1: nobody's, nothing is.
        keys: All that can be found.
        k: How many; no more than there are keys.
    """
    device = keys.vectors.device
    found, own = torch.from_numpy(queries).to(device), torch.from_numpy(owners).to(device)
    bias = torch.from_numpy(keys.bias.astype(np.float32)).to(device)
    key_owners = torch.from_numpy(keys.owners).to(device)
    some_owned = bool((owners >= 0).any() and (keys.owners >= 0).any())
    scores = torch.full((len(queries), k), -torch.inf, device=device)
    rows = torch.full((len(queries), k), -1, dtype=torch.int64, device=device)
    buffer = torch.empty(len(queries) * CHUNK, device=device)
    for start in range(0, len(keys.vectors), CHUNK):
        part = slice(start, start + CHUNK)
        values = product(found, keys.vectors[part], buffer).sub_(bias[part])
        if some_owned:
            values.masked_fill_((own[:, None] == key_owners[part]) & (own >= 0)[:, None], -torch.inf)
        best = values.topk(min(k, values.shape[1]), dim=1)
        both = torch.cat([scores, best.values], dim=1).topk(k, dim=1)
        scores, rows = both.values, torch.cat([rows, best.indices + start], dim=1).gather(1, both.indices)
    rows[scores == -torch.inf] = -1
    return rows.cpu().numpy()


def product(
    left: Float[Tensor, "a dim"], right: Float[Tensor, "b dim"], buffer: Float[Tensor, "_"]
) -> Float[Tensor, "a b"]:
    """Inner products of all rows, written into the buffer: fresh memory for each block costs as much as a tenth of it.

    On the CPU numpy multiplies: its BLAS took 0.58 s where that of torch took 0.68 s (one thread, AMD EPYC).
    """
    out = buffer[: len(left) * len(right)].view(len(left), len(right))
    if left.device.type == "cpu":
        np.matmul(left.numpy(), right.numpy().T, out=out.numpy())
    else:
        torch.mm(left, right.T, out=out)
    return out


def index_matrix(index: Index) -> Float[Tensor, "s dim"]:
    """All vectors of an index as they are matched, float32, on this process's device."""
    matrix = np.empty((len(index.ids), index.store.dim), dtype=np.float32)
    for start in range(0, len(matrix), CHUNK):
        matrix[start : start + CHUNK] = index.vectors(np.arange(start, min(start + CHUNK, len(matrix))))
    return torch.from_numpy(matrix).to(get_processes().device)


def check_finite(store: Store, what: str) -> None:
    """Refuse embeddings that are not finite: one alone would spoil a modality's mean and so every score.

    Raises:
        DataError: Naming the ids.
    """
    bad: list[str] = []
    for start, block in store.blocks(SHARD):
        if not np.isfinite(block.sum()):
            bad += _not_finite(store.ids[start : start + len(block)].tolist(), np.isfinite(block).all(axis=1))
    if bad:
        raise DataError(
            explain(
                f"{len(bad)} embeddings of {what} are not finite: {shortlist(bad)}",
                where=store.artifact.folder,
                fix="delete this folder and embed again with vlm.precision=fp32; look at these inputs if it stays so",
            )
        )


def _not_finite(ids: Sequence[str], finite: Bool[np.ndarray, "n"]) -> list[str]:
    return [ids[row] for row in np.flatnonzero(~finite).tolist()]
