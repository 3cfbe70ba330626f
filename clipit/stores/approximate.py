"""Search approximate faiss indexes."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from clipit.config.run import PairingConfig
from clipit.distributed import get_processes
from clipit.errors import ArtifactError
from clipit.output_files.artifacts import REBUILD, reading

logger = logging.getLogger(__name__)

MIN_LIST_LENGTH = 16
"""Default length of the candidate list in graph search, as in faiss."""
_MIN_LIMIT = 2**20  # lower bound of the two limits in `_lengths_within`
_MAX_LISTS_ON_GPU = 2048  # maximum number of lists that faiss searches on a GPU


@dataclass(frozen=True)
class SearchSettings:
    """Search settings of an approximate index; they are not part of the index.

    Attributes:
        nprobe: Number of lists that an IVF index searches per query; None for 1.
        ef_search: Length of the candidate list in graph search (HNSW, NSG); None for 16. A graph over the lists of an
            IVF index uses at least `nprobe`.
        candidates: Number of rows per query whose cosine similarities are computed exactly; None for as many as an
            exact search needs.
    """

    nprobe: int | None = None
    ef_search: int | None = None
    candidates: int | None = None


DEFAULT_SETTINGS = SearchSettings()


def search_settings(config: PairingConfig) -> SearchSettings:
    """Return the configured search settings."""
    return SearchSettings(config.nprobe, config.ef_search, config.candidates)


class FaissIndex:
    """Approximate faiss index, on this process's GPU if faiss supports this type of index there.

    On the CPU, the index is memory-mapped, so that the processes of a node share one copy, and so that an IVF index may
    be larger than the available memory. Fast-scan codes (PQ...fs) are read into memory.

    Attributes:
        lists: Number of lists of an IVF index that can be searched; 0 for an index without lists.
        has_graph: Whether rows are found by a graph (HNSW, NSG).
    """

    def __init__(self, path: Path, rows: int, dim: int) -> None:
        """Open an index.

        Args:
            rows: Number of rows that the index must have.
            dim: Dimension that its vectors must have.

        Raises:
            ArtifactError: The file is damaged, or has a different dimension or number of rows.
        """
        import faiss

        device = get_processes().device
        with reading(path), _lengths_within(path.stat().st_size):
            index = _read_mapped(path) if device.type == "cpu" else faiss.read_index(str(path))
        if (index.ntotal, index.d) != (rows, dim):
            raise ArtifactError(
                f"the index has {index.ntotal:,} rows of {index.d} dimensions, not {rows:,} of {dim}",
                where=path,
                fix=REBUILD,
            )
        self._path, self._rows = path, rows
        lists = faiss.try_extract_index_ivf(index)
        self._graph = None if lists is not None else _graph(index)
        self._index = _on_device(index)
        self._on_gpu = self._index is not index
        self._space = faiss.GpuParameterSpace() if self._on_gpu else faiss.ParameterSpace()
        self._quantiser = None if lists is None or self._on_gpu else _graph(faiss.downcast_index(lists.quantizer))
        self.lists = 0 if lists is None else min(lists.nlist, _MAX_LISTS_ON_GPU) if self._on_gpu else lists.nlist
        self.has_graph = self._graph is not None

    def search(
        self, queries: Float32[np.ndarray, "q dim"], k: int, needed: int, settings: SearchSettings
    ) -> Int[np.ndarray, "q k"]:
        """Find candidates for the k nearest rows of each query; -1 where fewer are found.

        Args:
            queries: Unit vectors of the queries.
            k: Number of rows per query.
            needed: Minimum number of rows per query; if fewer are found, an IVF index searches more lists.
        """
        if not self.lists:
            if self._graph is not None:
                _set_list_length(self._graph, settings.ef_search or MIN_LIST_LENGTH)
            return self._search(queries, k)
        probed = min(settings.nprobe or 1, self.lists)
        rows = self._probe(queries, k, probed, settings)
        too_few = rows[:, needed - 1] < 0
        while too_few.any() and probed < self.lists:
            probed = min(2 * probed, self.lists)
            rows[too_few] = self._probe(queries[too_few], k, probed, settings)
            too_few = rows[:, needed - 1] < 0
        return rows

    def _probe(
        self, queries: Float32[np.ndarray, "q dim"], k: int, probed: int, settings: SearchSettings
    ) -> Int[np.ndarray, "q k"]:
        self._space.set_index_parameter(self._index, "nprobe", probed)
        if self._quantiser is not None:
            _set_list_length(self._quantiser, max(settings.ef_search or MIN_LIST_LENGTH, probed))
        return self._search(queries, k)

    def _search(self, queries: Float32[np.ndarray, "q dim"], k: int) -> Int[np.ndarray, "q k"]:
        with reading(self._path):
            rows = np.asarray(self._index.search(queries, k)[1], dtype=np.int64)
        if rows.size and (rows.min() < -1 or rows.max() >= self._rows):
            raise ArtifactError("the index contains rows that do not exist", where=self._path, fix=REBUILD)
        return rows


@contextmanager
def _lengths_within(size: int) -> Iterator[None]:
    """Make faiss reject lengths that exceed the size of the file, instead of reserving memory for them.

    Args:
        size: Size of the file in bytes.
    """
    import faiss

    names = ("vector_byte_limit", "loop_limit")
    limits = [name for name in names if hasattr(faiss, f"set_deserialization_{name}")]  # missing in older versions
    before = {name: getattr(faiss, f"get_deserialization_{name}")() for name in limits}
    for name in limits:
        getattr(faiss, f"set_deserialization_{name}")(max(size, _MIN_LIMIT))
    try:
        yield
    finally:
        for name, limit in before.items():
            getattr(faiss, f"set_deserialization_{name}")(limit)


def _read_mapped(path: Path) -> Any:
    """Memory-map an index, or read it into memory if faiss cannot map it."""
    import faiss

    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError:
        return faiss.read_index(str(path))


def _graph(index: Any) -> Any:
    """Return the graph index inside a faiss index; None if there is none."""
    import faiss

    inner = faiss.downcast_index(index)
    while isinstance(inner, faiss.IndexPreTransform | faiss.IndexRefine):
        inner = faiss.downcast_index(inner.index if isinstance(inner, faiss.IndexPreTransform) else inner.base_index)
    return inner if isinstance(inner, faiss.IndexHNSW | faiss.IndexNSG) else None


def _set_list_length(graph: Any, length: int) -> None:
    import faiss

    if isinstance(graph, faiss.IndexHNSW):
        graph.hnsw.efSearch = length
    else:
        graph.nsg.search_L = length


def _on_device(index: Any) -> Any:
    """Move an index to this process's GPU, if there is one and faiss supports this type of index on it."""
    import faiss

    device = get_processes().device
    if device.type != "cuda" or getattr(faiss, "get_num_gpus", lambda: 0)() == 0:
        return index
    try:
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device.index or 0, index)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        logger.info(f"note: the index is searched on the CPU, because faiss cannot move it to the GPU: {reason}")
        return index
