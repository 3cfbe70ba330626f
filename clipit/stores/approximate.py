"""Approximate indexes of faiss, as files."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from clipit.artifacts import reading, whole_file
from clipit.distributed import get_processes
from clipit.errors import ConfigError, is_limit
from clipit.stores.embed import Store, centred

_TRAINING_ROWS = 200_000  # enough to train the coarse quantiser of any index that fits on one machine


class FaissIndex:
    """Approximate index of faiss, on the GPU of this process if faiss supports it there."""

    def __init__(self, path: Path, nprobe: int | None) -> None:
        import faiss

        with reading(path):
            index = faiss.read_index(str(path))
        self._space = faiss.ParameterSpace()
        if nprobe is not None:
            self._space.set_index_parameter(index, "nprobe", nprobe)
        lists = faiss.try_extract_index_ivf(index)
        self._probed, self._lists = (lists.nprobe, lists.nlist) if lists is not None else (1, 1)
        self._index = _on_device(index)
        if self._index is not index:
            self._space = faiss.GpuParameterSpace()

    def search(self, queries: Float32[np.ndarray, "q dim"], k: int, needed: int) -> Int[np.ndarray, "q k"]:
        """Search `nprobe` lists, and more for queries with fewer than `needed` rows in these."""
        rows = self._search(queries, k)
        probed, few = self._probed, rows[:, needed - 1] < 0
        while few.any() and probed < self._lists:
            probed = min(2 * probed, self._lists)
            self._space.set_index_parameter(self._index, "nprobe", probed)
            rows[few] = self._search(queries[few], k)
            self._space.set_index_parameter(self._index, "nprobe", self._probed)
            few = rows[:, needed - 1] < 0
        return rows

    def _search(self, queries: Float32[np.ndarray, "q dim"], k: int) -> Int[np.ndarray, "q k"]:
        return np.asarray(self._index.search(queries, k)[1], dtype=np.int64)


def _on_device(index: Any) -> Any:
    """Move an index to this process's GPU if available and supported by faiss for this index type."""
    import faiss

    device = get_processes().device
    if device.type != "cuda" or getattr(faiss, "get_num_gpus", lambda: 0)() == 0:
        return index
    try:
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device.index or 0, index)
    except RuntimeError:
        return index


def write_faiss(
    path: Path, store: Store, rows: Int[np.ndarray, "_"], mean: Float32[np.ndarray, "dim"] | None, key: str
) -> None:
    """Train and write the index of these rows of a text store.

    Raises:
        ConfigError: faiss refuses the key for these rows.
    """
    import faiss

    try:
        index = faiss.index_factory(store.dim, key, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            sample = np.random.default_rng(0).permutation(len(rows))[:_TRAINING_ROWS]
            index.train(centred(store.rows(rows[np.sort(sample)]), mean))
        for start in range(0, len(rows), 65536):
            index.add(centred(store.rows(rows[start : start + 65536]), mean))
    except RuntimeError as error:
        if is_limit(error):
            raise
        reason = str(error).strip().splitlines()[-1]
        raise ConfigError(
            f"faiss cannot build index {key!r} of {len(rows)} snippets: {reason}",
            where="pairing.index",
            fix="use a key with fewer lists, or Flat, which is exact",
        ) from None
    with whole_file(path) as temporary:
        faiss.write_index(index, str(temporary))
