"""Speed of faiss with different thread settings and OpenBLAS kernels, each in its own process."""

import json
import os
import platform
import sys
import time

from benchmarks.harness import Measurement, Options, alternate, ratios, run_python

_KERNELS = ("Haswell", "SkylakeX")  # for OPENBLAS_CORETYPE; an old OpenBLAS picks slow kernels for a new CPU


def measure(options: Options) -> list[Measurement]:
    """Measure an exact faiss search with the defaults, one thread, another wait policy, and other OpenBLAS kernels."""
    from clipit.stores.index import has_faiss

    if not has_faiss():
        print("faiss_threads: faiss is not installed, nothing to measure")
        return []
    sizes = [options.size(50_000, 1_000), options.size(1_000, 50)]
    settings: dict[str, dict[str, str | None]] = {
        "default": {},
        "one thread": {"OMP_NUM_THREADS": "1"},
        "passive wait": {"OMP_WAIT_POLICY": "passive"},  # spinning threads slow down a busy machine
    }
    if platform.machine() in ("x86_64", "AMD64") and not options.quick:
        settings["kernel unset"] = {"OPENBLAS_CORETYPE": None}
        settings |= {f"kernel {name}": {"OPENBLAS_CORETYPE": name} for name in _KERNELS}
    workloads = {name: (lambda c=changes: _search(sizes, c)) for name, changes in settings.items()}
    samples = alternate(workloads, options)
    facts = {"snippets": sizes[0], "tiles": sizes[1], "dim": 512, "OPENBLAS_CORETYPE": os.getenv("OPENBLAS_CORETYPE")}
    return [
        Measurement(
            "faiss_threads",
            f"{name}: time relative to the default",
            ratios(samples, name, "default"),
            samples=samples,
            facts=facts,
        )
        for name in settings
        if name != "default"
    ]


def _search(sizes: list[int], changes: dict[str, str | None]) -> float:
    environment = {name: value for name, value in (dict(os.environ) | changes).items() if value is not None}
    return float(json.loads(run_python(["-m", "benchmarks.faiss_threads", *map(str, sizes)], environment=environment)))


def main() -> None:
    """Print the time in seconds of the second of two searches, given the number of index rows and of queries."""
    import faiss
    import numpy as np

    rows, queries = (int(argument) for argument in sys.argv[1:3])
    rng = np.random.default_rng(0)
    index = faiss.IndexFlatIP(512)
    index.add(rng.standard_normal((rows, 512), dtype=np.float32))
    vectors = rng.standard_normal((queries, 512), dtype=np.float32)
    index.search(vectors, 9)
    start = time.perf_counter()
    index.search(vectors, 9)
    print(json.dumps(time.perf_counter() - start))


if __name__ == "__main__":
    main()
