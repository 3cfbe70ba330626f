"""Recall, speed and size of approximate indexes with automatically chosen settings."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from benchmarks.harness import Measurement, Options, alternate, seconds

if TYPE_CHECKING:
    from clipit.stores.embed import Store
    from clipit.stores.index import Index

_K = 1  # snippets per tile
_FULL = ("IVF1024,Flat", "IVF1024,SQ8", "IVF256,PQ16", "PQ16x4fs", "HNSW32", "NSG32")
_QUICK = ("IVF16,Flat", "PQ8x4fs")


def measure(options: Options) -> list[Measurement]:
    """Measure recall@1, queries per second (one block of tiles) and bytes for 45,000 snippets of 128 dimensions."""
    from clipit.pairing.nearest import search
    from clipit.pairing.pairs import pair_tiles
    from clipit.stores.index import build_index
    from clipit.vectors import centred

    count, dim = options.size(45_000, 1_000), options.size(128, 16)
    texts = _clustered_store(options, "text_store", count, dim, 0.3, seed=1)
    tiles = _clustered_store(options, "tile_store", options.size(2_000, 100), dim, 0.6, seed=2)
    queries = centred(tiles.rows(np.arange(len(tiles.ids))), tiles.mean())
    measurements = []
    searched: dict[str, Index] = {"Flat": build_index(options.folder, texts)}
    for key in _QUICK if options.quick else _FULL:
        index = build_index(options.folder, texts, key=key)
        pairs = pair_tiles(options.folder, index, tiles, k=_K)
        facts, size = pairs.summary["recall"], index.artifact.file("index.faiss").stat().st_size / count
        searched[key] = pairs.as_searched(index)
        measurements.append(
            Measurement("index_recall", f"{key}: recall@{_K}", [facts["recall"]], "", 0.95, True, {}, facts)
        )
        measurements.append(Measurement("index_recall", f"{key}: index, per snippet", [size], "bytes"))

    def workload(index: "Index") -> Callable[[], float]:
        return lambda: seconds(lambda: search(index, queries, _K))

    samples = alternate({key: workload(index) for key, index in searched.items()}, options)
    for key, times in samples.items():
        rates = [len(queries) / value for value in times]
        measurements.append(Measurement("index_recall", f"{key}: search", rates, "tiles/s", samples={key: times}))
    return measurements


def _clustered_store(options: Options, kind: str, count: int, dim: int, noise: float, seed: int) -> "Store":
    """Write a store of vectors around 300 common centres, with a common subspace of 32 dimensions and noise."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from clipit.distributed import build_once
    from clipit.stores.embed import SHARD, Store
    from clipit.vectors import unit

    common = np.random.default_rng(0)
    centres, directions = common.normal(size=(300, dim)), 0.25 * common.normal(size=(min(32, dim), dim))
    rng = np.random.default_rng(seed)

    def draw(rows: int) -> Float32[np.ndarray, "n d"]:
        spread = rng.normal(size=(rows, len(directions))) @ directions + noise * rng.normal(size=(rows, dim))
        return unit((centres[rng.integers(0, 300, rows)] + spread).astype(np.float32))

    def make(folder: Path) -> dict[str, Any]:
        for start in range(0, count, SHARD):
            rows = min(SHARD, count - start)
            np.save(folder / f"emb-{start // SHARD:05d}.npy", draw(rows).astype(np.float16))
            ids = [f"{kind[:4]}{row:09d}" for row in range(start, start + rows)]
            pq.write_table(pa.table({"id": ids}), folder / f"ids-{start // SHARD:05d}.parquet")
        return {"rows": count, "dim": dim, "vlm": "clustered vectors"}

    inputs = {"rows": count, "dim": dim, "seed": seed, "vlm": "clustered"}
    return Store(build_once(options.folder, kind, inputs, make))
