"""Index over a text store for nearest-neighbour search of snippets.

A Flat index is the text store itself: its shards are searched one after another, without a copy. Only approximate
faiss indexes are written to files.

Snippets with identical embeddings (for example, if the tokeniser ignores case) share one row of the index, which has
the lowest of their ids. Because scores are exact and ties are broken by id, pairs depend only on the data.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int

from clipit.config.run import has_graph, has_lists
from clipit.distributed import build_once, get_processes
from clipit.errors import ConfigError, DataError, counted
from clipit.output_files.artifacts import Artifact
from clipit.output_files.whole_files import write_array, write_parquet
from clipit.stores.approximate import DEFAULT_SETTINGS, FaissIndex, SearchSettings
from clipit.stores.approximate_build import MAX_ROWS, MIN_ROWS, check_index_memory, write_faiss
from clipit.stores.check import check_shards
from clipit.stores.embed import Store
from clipit.stores.stored_rows import StoredRows

Backend = Literal["auto", "faiss", "torch"]
_MIN_SPREAD = 1e-3  # unit vectors with smaller distances may be equal up to half precision
_MAX_SPREAD_CHECK = 4096  # number of rows above which the check is skipped
_POSITIONS, _ROWS = "positions.npy", "rows.npy"  # store row of each index row, and the inverse


def has_faiss() -> bool:
    """Return whether faiss is installed."""
    import importlib.util

    return importlib.util.find_spec("faiss") is not None


def choose_backend(key: str, backend: Backend) -> Literal["faiss", "torch"]:
    """Return the library that searches an index; the arguments are those of `build_index`.

    Raises:
        ConfigError: The backend or the key needs faiss, which is not installed.
    """
    if backend == "faiss" and not has_faiss():
        raise ConfigError(
            "faiss is not installed", where="pairing.backend", fix="install faiss-cpu, or set pairing.backend=torch"
        )
    chosen: Literal["faiss", "torch"] = "faiss" if backend != "torch" and has_faiss() else "torch"
    if chosen == "torch" and key != "Flat":
        raise ConfigError(
            f"index key {key!r} needs faiss", where="pairing.index", fix="install faiss-cpu, or set pairing.index=Flat"
        )
    return chosen


def build_index(
    root: Path,
    store: Store,
    *,
    key: str = "Flat",
    centring: bool = True,
    backend: Backend = "auto",
    search: SearchSettings = DEFAULT_SETTINGS,
) -> "Index":
    """Build the index of a text store.

    Args:
        key: Key of `faiss.index_factory`; `Flat` is exact.
        centring: Whether to subtract the store's mean and normalise again before indexing.
        backend: Library used for searching. `torch` supports only Flat; `auto` means faiss if it is installed. On a
            GPU, Flat is always searched with torch.
        search: Search settings of an approximate index; they do not change the index itself.

    Raises:
        ConfigError: The key is unknown, needs faiss, or needs more training rows or memory than are available; or a
            setting does not apply to this type of index.
        DataError: The store is empty.
    """
    chosen = choose_backend(key, backend)
    if search.nprobe is not None and not has_lists(key):
        raise ConfigError(
            f"index key {key!r} has no lists", where="pairing.nprobe", fix="use an IVF index, or remove nprobe"
        )
    if search.ef_search is not None and not has_graph(key):
        raise ConfigError(
            f"index key {key!r} has no graph", where="pairing.ef_search", fix="use an HNSW index, or remove ef_search"
        )
    inputs = {"store": store.fingerprint, "key": key, "centring": centring, "backend": chosen}
    if key != "Flat":
        inputs |= {"distance": "Euclidean", "training_rows": f"{MIN_ROWS} to {MAX_ROWS} per centroid"}

    def make(folder: Path) -> dict[str, Any]:
        if not get_processes().main:
            return {}
        if not len(store.ids):
            raise DataError(
                "the text store is empty, so tiles cannot be paired",
                where=store.artifact.folder,
                fix="relax the filters of `reports`",
            )
        check_shards(store)
        if key != "Flat":
            check_index_memory(key, store.dim, store.size)
        mean = store.mean() if centring else None
        rows = _distinct_rows(store)
        if mean is not None:
            _check_spread(store, rows, mean)
        write_parquet(folder / "ids.parquet", pa.table({"snippet_id": store.ids[rows].tolist()}))
        arrays = {_POSITIONS: rows, _ROWS: _inverse(rows, len(store.ids))}
        for name, values in (arrays if mean is None else {"mean.npy": mean, **arrays}).items():
            write_array(folder / name, values)
        if key != "Flat":
            write_faiss(folder / "index.faiss", store, rows, mean, key)
        return {
            "rows": len(rows),
            "equal_embeddings": len(store.ids) - len(rows),
            "dim": store.dim,
            "vlm": store.vlm,
            "key": key,
            "backend": chosen,
            "centring": centring,
        }

    return Index(build_once(root, "index", inputs, make), store, search)


@dataclass(frozen=True)
class Index:
    """Index of a text store."""

    artifact: Artifact
    store: Store
    settings: SearchSettings = DEFAULT_SETTINGS
    """Search settings of an approximate index."""

    @property
    def flat(self) -> bool:
        """Whether the index is the text store itself, and its search is exact."""
        return str(self.artifact.manifest.facts["key"]) == "Flat"

    @property
    def size(self) -> int:
        """Number of rows."""
        return int(self.artifact.manifest.facts["rows"])

    @cached_property
    def ids(self) -> np.ndarray:
        """Snippet ids, one per row of the index, ascending; for large corpora, `ids_of` needs less memory."""
        column = self.artifact.table("ids.parquet").column("snippet_id")
        return np.asarray(column.to_numpy(), dtype=np.str_)

    def ids_of(self, rows: Int[np.ndarray, "n"]) -> np.ndarray:
        """Read the snippet ids of these rows."""
        return self.ids[rows] if "ids" in self.__dict__ else self.store.ids_at(np.asarray(self.rows_in_store[rows]))

    @cached_property
    def mean(self) -> Float32[np.ndarray, "dim"] | None:
        """Mean that was subtracted from the text embeddings; None without centring."""
        if not self.artifact.manifest.facts["centring"]:
            return None
        mean: Float32[np.ndarray, dim] = self.artifact.array("mean.npy")
        return mean

    @cached_property
    def rows_in_store(self) -> Int[np.ndarray, "_"]:
        """Store row of each index row, memory-mapped."""
        if _POSITIONS not in self.artifact.manifest.files:  # written by an earlier version
            return self.store.positions(self.ids)
        positions: Int[np.ndarray, "_"] = self.artifact.array(_POSITIONS, "r")
        return positions

    @cached_property
    def _rows_by_position(self) -> Int[np.ndarray, "_"]:
        """Index row of each store row, memory-mapped; -1 for store rows that another row represents."""
        if _ROWS not in self.artifact.manifest.files:
            return _inverse(self.rows_in_store, self.store.size)
        rows: Int[np.ndarray, "_"] = self.artifact.array(_ROWS, "r")
        return rows

    def stored(self) -> StoredRows:
        """Return the vectors, to be read shard by shard."""
        return StoredRows(self.store, self.mean, self.rows_in_store, self._rows_by_position)

    @property
    def searched_by_faiss(self) -> bool:
        """Whether this process searches a Flat index with faiss: on the CPU, with the backend faiss."""
        on_cpu = get_processes().device.type == "cpu"
        return on_cpu and self.artifact.manifest.facts["backend"] == "faiss" and has_faiss()

    @cached_property
    def faiss_index(self) -> FaissIndex:
        """Opened faiss index; only for approximate indexes."""
        return FaissIndex(self.artifact.file("index.faiss"), self.size, int(self.artifact.manifest.facts["dim"]))

    def candidates(self, queries: Float32[np.ndarray, "q dim"], k: int, needed: int = 1) -> Int[np.ndarray, "q k"]:
        """Find the k nearest rows of each query in an approximate index; -1 where the index returns fewer rows.

        Args:
            queries: Unit vectors of the queries, centred like the index.
            k: Number of rows per query, at most the number of rows of the index.
            needed: Minimum number of rows per query; if fewer are found, an IVF index searches more lists.
        """
        return self.faiss_index.search(np.ascontiguousarray(queries), k, needed, self.settings)

    def vectors(self, rows: Int[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape dim"]:
        """Read the vectors of these rows, centred if the index is centred."""
        return self.stored().vectors(rows)


def _inverse(positions: Int[np.ndarray, "n"], size: int) -> Int[np.ndarray, "size"]:
    """Return the inverse of `positions`: the row of each of `size` positions, -1 for those without a row."""
    rows = np.full(size, -1, dtype=np.int64)
    rows[positions] = np.arange(len(positions))
    return rows


def _check_spread(store: Store, rows: Int[np.ndarray, "_"], mean: Float32[np.ndarray, "dim"]) -> None:
    """Check that the snippet embeddings are not all nearly equal, because centring would then reduce them to noise."""
    if len(rows) > _MAX_SPREAD_CHECK:  # so many distinct vectors cannot all be nearly equal
        return
    if float(np.linalg.norm(store.rows(rows) - mean, axis=1).max()) < _MIN_SPREAD:
        raise DataError(
            f"centring needs snippets with different embeddings, but this store has only "
            f"{counted(len(rows), 'distinct embedding')}, which are nearly equal",
            where="pairing.centring",
            fix="add reports, relax the filters of `reports`, or set pairing.centring=false",
        )


def _distinct_rows(store: Store) -> Int[np.ndarray, "_"]:
    """Return the store rows in the order of their ids; of rows with equal embeddings, only the first."""
    digests = np.empty(len(store.ids), dtype="S32")
    row = 0
    for _, block in store.blocks():
        for vector in block.astype(np.float16):
            digests[row] = hashlib.blake2b(vector.tobytes(), digest_size=16).hexdigest().encode()
            row += 1
    by_id = np.argsort(store.ids, kind="stable")
    _, first = np.unique(digests[by_id], return_index=True)
    return np.asarray(by_id[np.sort(first)], dtype=np.int64)
