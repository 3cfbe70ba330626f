"""Exact search by matrix products in blocks, so that memory use depends only on the block size.

Products are computed in full float32, even on GPUs: TF32 keeps only ten bits of the mantissa and would miss some of the
nearest rows.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from clipit.distributed import get_processes

BLOCK = 4096
"""Maximum number of vectors per matrix product; together with the number of queries, it limits the memory."""
_VALUES_PER_PASS = {"cpu": 2**23, "cuda": 2**28}  # float32 values of the vectors kept for one pass: 32 MiB, 1 GiB
_CHUNK = 64  # number of scores in a chunk of `best_of`

RowVectors = tuple[Int[Tensor, "_"], Float[Tensor, "_ dim"]]
"""Rows, and their vectors."""
Adjust = Callable[[slice, Int[Tensor, "_"], Float[Tensor, "q _"]], None]
"""Function that adjusts the scores of a slice of queries for some rows, in place."""


def blocks_per_pass(block: int, dim: int) -> int:
    """Return the number of blocks of vectors that are kept for one pass over the other vectors, at least one."""
    return max(1, values_per_pass() // (block * dim))


def values_per_pass() -> int:
    """Return the number of float32 values that are kept for one pass: 32 MiB on a CPU, 1 GiB on a GPU."""
    return _VALUES_PER_PASS.get(get_processes().device.type, _VALUES_PER_PASS["cpu"])


def nearest_rows(
    queries: Float32[np.ndarray, "q dim"],
    vectors: Iterable[RowVectors],
    k: int,
    *,
    block: int = BLOCK,
    adjust: Adjust | None = None,
    faiss: bool = False,
    shared: bool = False,
) -> Int[np.ndarray, "q k"]:
    """Find the k rows with the highest scores for each query, in no particular order, padded with -1.

    The vectors are read once, in parts, and each part is compared with the queries in blocks.

    Args:
        vectors: Rows and vectors to search, in parts of at most `BLOCK`, on this process's device.
        k: Number of rows per query.
        block: Queries per matrix product.
        adjust: Function that adjusts the scores of a slice of queries for some rows, in place; -inf excludes a row.
        faiss: Whether to search with faiss; `adjust` is then ignored.
        shared: Whether the other processes search other vectors for the same queries; the results are then merged.
    """
    processes = get_processes()
    device = processes.device
    on_device = torch.from_numpy(np.ascontiguousarray(queries)).to(device)
    highest = torch.full((len(queries), k), -torch.inf, device=device)
    rows = torch.full((len(queries), k), -1, dtype=torch.int64, device=device)
    buffer = torch.empty(0 if faiss else min(block, len(queries)) * BLOCK, device=device)
    with full_precision():
        for part_rows, part_vectors in vectors:
            for start in range(0, len(queries), block):
                queried = slice(start, start + block)
                if faiss:
                    scores, columns = _faiss_best(on_device[queried], part_vectors, k)
                else:
                    values = product(on_device[queried], part_vectors, buffer)
                    if adjust is not None:
                        adjust(queried, part_rows, values)
                    scores, columns = best_of(values, k)
                highest[queried], rows[queried] = _merge(highest[queried], rows[queried], scores, part_rows[columns])
    if shared and processes.count > 1:
        results = processes.gather((highest.cpu().numpy(), rows.cpu().numpy()))
        all_scores, all_rows = (
            torch.from_numpy(np.concatenate(arrays, axis=1)) for arrays in zip(*results, strict=True)
        )
        best = all_scores.topk(k, dim=1)
        highest, rows = best.values, all_rows.gather(1, best.indices)
    rows[highest == -torch.inf] = -1
    return rows.cpu().numpy()


def _merge(
    highest: Float[Tensor, "q k"], rows: Int[Tensor, "q k"], scores: Float[Tensor, "q b"], others: Int[Tensor, "q b"]
) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
    both = torch.cat([highest, scores], dim=1).topk(highest.shape[1], dim=1)
    return both.values, torch.cat([rows, others], dim=1).gather(1, both.indices)


def best_of(scores: Float[Tensor, "q n"], k: int) -> tuple[Float[Tensor, "q b"], Int[Tensor, "q b"]]:
    """Return the k highest scores of each row (all if there are fewer) and their columns.

    The k best columns are in the k chunks with the highest maxima. One fast pass computes the maxima, and `topk` then
    reads only these chunks, which is faster than `topk` of all columns.
    """
    chunks = scores.shape[1] // _CHUNK
    if chunks <= 2 * k:
        best = scores.topk(min(k, scores.shape[1]), dim=1)
        return best.values, best.indices
    chunked = scores[:, : chunks * _CHUNK].reshape(len(scores), chunks, _CHUNK)
    chosen = chunked.amax(dim=2).topk(k, dim=1).indices
    candidates = chunked.gather(1, chosen[:, :, None].expand(-1, -1, _CHUNK)).flatten(1)
    rest = scores[:, chunks * _CHUNK :]
    best = torch.cat([candidates, rest], dim=1).topk(k, dim=1)
    first = torch.cat([chosen * _CHUNK, torch.full_like(chosen[:, :1], chunks * _CHUNK)], dim=1)
    number = best.indices.div(_CHUNK, rounding_mode="floor").clamp_(max=k)
    return best.values, first.gather(1, number) + best.indices - number * _CHUNK


def _faiss_best(
    queries: Float[Tensor, "q dim"], vectors: Float[Tensor, "n dim"], k: int
) -> tuple[Float[Tensor, "q b"], Int[Tensor, "q b"]]:
    import faiss

    k = min(k, len(vectors))
    scores, columns = faiss.knn(queries.numpy(), vectors.numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(scores), torch.from_numpy(columns)


def product(
    left: Float[Tensor, "a dim"], right: Float[Tensor, "b dim"], buffer: Float[Tensor, "_"]
) -> Float[Tensor, "a b"]:
    """Compute the inner products of all rows in a reused buffer; allocating each block would take 10% of the time.

    On the CPU, NumPy computes the product, because its BLAS is faster than torch's: 0.58 s instead of 0.68 s on one
    thread of an AMD EPYC.
    """
    out = buffer[: len(left) * len(right)].view(len(left), len(right))
    if left.device.type == "cpu":
        np.matmul(left.numpy(), right.numpy().T, out=out.numpy())
    else:
        torch.mm(left, right.T, out=out)
    return out


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute products of float32 matrices without TF32, whatever the setting for training, and without autocast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(get_processes().device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
