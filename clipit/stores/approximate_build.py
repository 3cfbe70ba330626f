"""Train and write approximate faiss indexes, and suggest an index key that suits the number of snippets."""

import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int

from clipit.errors import ConfigError, counted, is_limit
from clipit.free_memory import device_memory
from clipit.output_files.artifacts import whole_file
from clipit.stores.embed import Store
from clipit.vectors import centred

logger = logging.getLogger(__name__)

MIN_ROWS, MAX_ROWS = 39, 256
"""Minimum number of training rows per centroid that faiss recommends, and maximum that it uses."""
_OTHER_ROWS = 65_536  # training rows of rotations and scalar codes, which have no centroids
_MAX_BYTES = 2 * 2**30  # maximum bytes of training rows, unless the recommended minimum exceeds it
_BLOCK = 65_536  # number of rows that are added at once
_NO_LISTS = re.compile(r"IVF0+(?!\d)")
_OPQ_CENTROIDS = 256  # number of centroids of the 8-bit codes used to train a rotation


def check_key(key: str, dim: int, rows: int) -> None:
    """Check that faiss can build an index with this key, without building it.

    Args:
        key: Key of `faiss.index_factory`.
        rows: Number of vectors, or an upper bound if some may be equal.

    Raises:
        ConfigError: The key is unknown, does not suit the dimension, or has more centroids than there are vectors.
    """
    _empty_index(key, dim, rows)


def training_rows(centroids: int, dim: int, rows: int) -> int:
    """Return the number of training rows: 256 per centroid, or fewer if these exceed 2 GiB.

    There are at least 39 rows per centroid and at least 65,536 rows, or all rows if there are fewer.

    Args:
        centroids: Largest number of centroids of any k-means in the index.
        rows: Number of rows of the index.
    """
    affordable = min(MAX_ROWS * centroids, _MAX_BYTES // (4 * dim))
    return min(rows, max(affordable, MIN_ROWS * centroids, _OTHER_ROWS))


def fitting_key(key: str, rows: int) -> str:
    """Reduce the number of lists and the bits per code until each centroid has as many rows as faiss recommends.

    A rotation (OPQ) that cannot be trained is dropped.

    Args:
        key: Key of `faiss.index_factory`.
    """
    max_centroids = max(rows // MIN_ROWS, 1)
    max_bits = int(math.log2(max_centroids))

    def fewer_lists(match: re.Match[str]) -> str:
        return f"IVF{min(int(match[1]), 2**max_bits)}"

    def fewer_bits(match: re.Match[str]) -> str:
        bits = int(match[2] or 8)
        return match[0] if 2**bits <= max_centroids else f"PQ{match[1]}x{max(max_bits, 1)}"

    if rows < _OPQ_CENTROIDS:
        key = re.sub(r"OPQ\d+(_\d+)?,", "", key)
    return re.sub(r"(?<![A-Z])PQ(\d+)(?:x(\d+))?(?![\dx])", fewer_bits, re.sub(r"IVF(\d+)", fewer_lists, key))


def write_faiss(
    path: Path, store: Store, rows: Int[np.ndarray, "_"], mean: Float32[np.ndarray, "dim"] | None, key: str
) -> None:
    """Train and write an index over the given rows of a text store.

    Distances are Euclidean: they rank unit vectors as cosine similarities do, and faiss encodes the residuals of lists
    more accurately than with inner products.

    Raises:
        ConfigError: faiss cannot build the index for these rows.
    """
    import faiss

    index = _empty_index(key, store.dim, len(rows))
    centroids = _centroids(index)
    if len(rows) < MIN_ROWS * centroids:
        logger.info(
            f"note: index {key!r} trains {counted(centroids, 'centroid')} on {counted(len(rows), 'snippet')}; faiss "
            f"recommends {MIN_ROWS} to {MAX_ROWS} per centroid, as with the key {fitting_key(key, len(rows))!r}"
        )
    try:
        if not index.is_trained:
            count = training_rows(centroids, store.dim, len(rows))
            sample = np.random.default_rng(0).permutation(len(rows))[:count]
            index.train(_sample(store, rows[np.sort(sample)], mean))
        for start in range(0, len(rows), _BLOCK):
            index.add(centred(store.rows(rows[start : start + _BLOCK]), mean))
    except RuntimeError as error:
        if is_limit(error):
            raise
        reason = str(error).strip().splitlines()[-1]
        raise _build_error(key, len(rows), reason, _smaller(key, len(rows))) from None
    with whole_file(path) as temporary:
        faiss.write_index(index, str(temporary))


def _sample(
    store: Store, rows: Int[np.ndarray, "n"], mean: Float32[np.ndarray, "dim"] | None
) -> Float32[np.ndarray, "n dim"]:
    """Read and centre rows in blocks, so that the sample is in memory only once."""
    sample = np.empty((len(rows), store.dim), dtype=np.float32)
    for start in range(0, len(rows), _BLOCK):
        sample[start : start + _BLOCK] = centred(store.rows(rows[start : start + _BLOCK]), mean)
    return sample


def build_bytes(key: str, dim: int, rows: int) -> tuple[int, int]:
    """Estimate the memory that building an index needs, in bytes: for the training rows, and for the index itself.

    Args:
        key: Key of `faiss.index_factory`.

    Raises:
        ConfigError: faiss cannot build the index.
    """
    index = _empty_index(key, dim, rows)
    sample = 0 if index.is_trained else training_rows(_centroids(index), dim, rows)
    return 4 * dim * sample, _index_bytes(index, rows)


def check_index_memory(key: str, dim: int, rows: int) -> None:
    """Check that the training rows and the index fit into the free memory of this machine.

    Args:
        key: Key of `faiss.index_factory`.

    Raises:
        ConfigError: There is not enough free memory, or faiss cannot build the index.
    """
    training, index = build_bytes(key, dim, rows)
    free = device_memory(torch.device("cpu"))
    if training + index > free:
        raise ConfigError(
            f"building index {key!r} for {counted(rows, 'snippet')} needs about {(training + index) / 1e9:,.1f} GB of "
            f"memory ({training / 1e9:,.1f} GB for training rows, {index / 1e9:,.1f} GB for the index), but only "
            f"{free / 1e9:,.1f} GB are free",
            where="pairing.index",
            fix="use a key with fewer lists or smaller codes, a machine with more memory, or Flat, which is exact and "
            "keeps no index in memory",
        )


def _index_bytes(index: Any, rows: int) -> int:
    """Estimate the size of an index in bytes: codes, ids in lists, centroids and graph links."""
    import faiss

    inner: Any = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexPreTransform):
        return _index_bytes(inner.index, rows)
    if isinstance(inner, faiss.IndexRefine):
        return _index_bytes(inner.base_index, rows) + _index_bytes(inner.refine_index, rows)
    if isinstance(inner, faiss.IndexIVF):
        quantiser: Any = faiss.downcast_index(inner.quantizer)
        lists = 0 if isinstance(quantiser, faiss.MultiIndexQuantizer) else _index_bytes(quantiser, int(inner.nlist))
        return rows * (int(inner.code_size) + 8) + lists
    if (storage := getattr(inner, "storage", None)) is not None:  # a graph
        links = inner.nsg.R if isinstance(inner, faiss.IndexNSG) else inner.hnsw.cum_nb_neighbors(1)
        return _index_bytes(storage, rows) + 4 * rows * int(links)
    return rows * int(inner.sa_code_size())


def _empty_index(key: str, dim: int, rows: int) -> Any:
    """Return the empty index for a key.

    Raises:
        ConfigError: faiss cannot build the index.
    """
    import faiss

    if _NO_LISTS.search(key):
        raise _build_error(key, rows, "it has no lists", "use a key with lists, such as IVF16,Flat, or Flat")
    try:
        index = faiss.index_factory(dim, key, faiss.METRIC_L2)
    except RuntimeError as error:
        if is_limit(error):
            raise
        fix = f"correct the key (PQ<m> needs an m that divides {dim}), or use HNSW32 or Flat"
        raise _build_error(key, rows, str(error).strip().splitlines()[-1], fix) from None
    centroids = _centroids(index)
    if rows < centroids:
        reason = f"it has {centroids:,} lists or codes, each of which needs about {MIN_ROWS} snippets"
        raise _build_error(key, rows, reason, _smaller(key, rows))
    return index


def _build_error(key: str, rows: int, reason: str, fix: str) -> ConfigError:
    problem = f"faiss cannot build index {key!r} for {counted(rows, 'snippet')}: {reason}"
    return ConfigError(problem, where="pairing.index", fix=fix)


def _smaller(key: str, rows: int) -> str:
    """Suggest indexes that need fewer rows."""
    smaller = fitting_key(key, rows)
    alternative = "a key with fewer lists" if smaller == key else smaller
    return f"use {alternative}, HNSW32 (needs no training) or Flat (exact)"


def _centroids(index: Any) -> int:
    """Return the largest number of centroids of any k-means in an index; 0 if there is none."""
    import faiss

    inner: Any = faiss.downcast_index(index)
    counts = [0]
    if isinstance(inner, faiss.IndexPreTransform):
        chain: Any = inner.chain
        steps = [faiss.downcast_VectorTransform(chain.at(number)) for number in range(chain.size())]
        counts += [_OPQ_CENTROIDS for step in steps if isinstance(step, faiss.OPQMatrix)]
        counts.append(_centroids(inner.index))
    if isinstance(inner, faiss.IndexRefine):
        counts += [_centroids(inner.base_index), _centroids(inner.refine_index)]
    if isinstance(inner, faiss.IndexIVF):
        quantiser: Any = faiss.downcast_index(inner.quantizer)
        multiple = isinstance(quantiser, faiss.MultiIndexQuantizer)
        counts.append(quantiser.pq.ksub if multiple else inner.nlist)
    if isinstance(storage := getattr(inner, "storage", None), faiss.Index):  # the codes of a graph
        counts.append(_centroids(storage))
    if (codes := getattr(inner, "pq", None)) is not None:
        counts.append(codes.ksub)
    return int(max(counts))
