"""Pair tiles in this process, or in torchrun's processes, and print seconds and peak memory in bytes as JSON.

`python -m benchmarks.pairing_memory search ROWS` only searches random vectors with faiss, without reading or writing.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np


def main() -> None:
    """Measure pairing, given the output root, text store, tile store, tiles per block and a suffix of the folder name.

    With the arguments `search ROWS`, measure a bare search instead.
    """
    if sys.argv[1] == "search":
        _search(int(sys.argv[2]))
        return
    from clipit.distributed import get_processes
    from clipit.output_files.artifacts import open_artifact
    from clipit.pairing.pairs import pair_tiles
    from clipit.stores.embed import Store
    from clipit.stores.index import build_index

    root, texts, tiles = (Path(argument) for argument in sys.argv[1:4])
    index = build_index(root, Store(open_artifact(texts, "text_store")))
    store = Store(open_artifact(tiles, "tile_store"))
    before = peak_bytes()
    get_processes().barrier()
    start, cpu_start = time.perf_counter(), time.process_time()
    pair_tiles(root / f"memory-{sys.argv[5]}", index, store, k=5, block=int(sys.argv[4]))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    if get_processes().main:
        print(json.dumps({"before": before, "peak": peak_bytes(), "seconds": seconds, "cpu_seconds": cpu}))


def _search(rows: int) -> None:
    """Find the 5 nearest rows for 2,000 queries, in this process's share of the rows, which repeat 4,096 vectors."""
    import faiss

    from clipit.distributed import get_processes

    rng = np.random.default_rng(0)
    queries, vectors = (rng.standard_normal((size, 512), dtype=np.float32) for size in (2_000, 4_096))
    processes = get_processes()
    parts = processes.share(range(-(-rows // len(vectors))))
    faiss.knn(queries, vectors, 5, metric=faiss.METRIC_INNER_PRODUCT)
    processes.barrier()
    start = time.perf_counter()
    for _ in parts:
        faiss.knn(queries, vectors, 5, metric=faiss.METRIC_INNER_PRODUCT)
    processes.barrier()
    if processes.main:
        print(json.dumps({"seconds": time.perf_counter() - start}))


def peak_bytes() -> int:
    """Return the peak resident memory of this process in bytes.

    On Linux, this is VmHWM, because getrusage also counts the memory that the parent process had at the fork.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
