"""Time and memory of an epoch over bags of stored features, relative to reading the same features.

The memory is measured in a separate process: `python -m benchmarks.mil_epoch STORE SLIDES TILES` prints it as JSON,
and `python -m benchmarks.mil_epoch --slides 1000` writes a store of that size first.
"""

import argparse
import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Measurement, Options, Workload, alternate, ratios, run_python, seconds
from benchmarks.pairing_memory import peak_bytes
from clipit.config.mil import MilTrainingConfig

_DIM = 512  # dimension of the features
_CLASSES = ("a", "b")


def measure(options: Options) -> list[Measurement]:
    """Measure the time of an epoch relative to reading its features, and its memory relative to one bag's features.

    The bags have 5,000 tiles of 512 half-precision values each; the network uses gated attention with the default layer
    widths. Memory is what the process allocates, excluding the memory-mapped shards.
    """
    slides, tiles = options.size(40, 4, 400), options.size(5_000, 50)
    store = write_features(options.folder, slides, tiles)
    bags, workloads = _open(store, slides, tiles), dict[str, Workload]()
    _epoch(bags.select(np.arange(1)))  # warm-up: imports
    workloads["epoch"] = lambda: seconds(lambda: _epoch(bags))
    workloads["reading"] = lambda: seconds(lambda: _read(bags))
    samples = alternate(workloads, options)
    grown = _measure_memory(store, slides, tiles)
    bag = tiles * _DIM * 4
    facts = {"slides": slides, "tiles": tiles, "dim": _DIM, "bytes": slides * tiles * _DIM * 2, **grown}
    return [
        Measurement(
            "mil_epoch", f"{slides} slides of {tiles:,} tiles", samples["epoch"], "s", samples=samples, facts=facts
        ),
        Measurement("mil_epoch", "epoch time / read time", ratios(samples, "epoch", "reading"), facts=facts),
        Measurement(
            "mil_epoch", "memory of an epoch / features of one bag", [grown["grown"] / bag], goal=12.0,
            facts=facts,
        ),
    ]  # fmt: skip


def write_features(folder: Path, slides: int, tiles: int) -> Path:
    """Write a store of random features, slide by slide; return its folder."""
    from clipit.distributed import build_once
    from clipit.progress import Advance
    from clipit.stores.embed import write_shards

    ids = [f"s{slide:05d}@{tile},0,1" for slide in range(slides) for tile in range(tiles)]

    def encode(start: int, stop: int, advance: Advance) -> np.ndarray:
        advance(stop - start)
        values = np.random.default_rng(start).random((stop - start, _DIM), dtype=np.float32)
        return values.astype(np.float16)

    def make(place: Path) -> dict[str, Any]:
        write_shards(place, ids, encode, "writing features")
        return {"rows": len(ids), "dim": _DIM}

    return build_once(folder, "features", {"slides": slides, "tiles": tiles}, make).folder


def _open(folder: Path, slides: int, tiles: int) -> Any:
    """Open the bags of a store, with alternating labels."""
    from clipit.mil.mil_bags import MilBags
    from clipit.mil.tile_store_bags import StoreReader
    from clipit.output_files.artifacts import open_artifact
    from clipit.stores.embed import Store

    store = Store(open_artifact(folder, "features"))
    names = np.array([f"s{slide:05d}" for slide in range(slides)])
    splits = np.full(slides, "train")
    places = np.arange(slides * tiles, dtype=np.int64)
    first = np.arange(0, slides * tiles + 1, tiles, dtype=np.int64)
    reader = StoreReader({"train": store}, splits, places, first, store.ids)
    labels = np.arange(slides, dtype=np.int64) % len(_CLASSES)
    return MilBags(names, labels, names, splits, _CLASSES, reader, np.arange(slides, dtype=np.int64))


def _read(bags: Any) -> None:
    for bag in range(len(bags)):
        bags.features(bag)


def _epoch(bags: Any) -> None:
    import torch

    from clipit.distributed import get_processes
    from clipit.mil.network import MilNetwork
    from clipit.mil.train_network import train_epoch

    options = MilTrainingConfig()
    torch.manual_seed(0)
    network = MilNetwork(bags.dim, len(bags.classes), options).to(get_processes().device)
    train_epoch(network, torch.optim.AdamW(network.parameters()), bags, None, options, 0, 0)


def _measure_memory(store: Path, slides: int, tiles: int) -> dict[str, Any]:
    output = run_python(["-m", "benchmarks.mil_epoch", str(store), str(slides), str(tiles)])
    memory: dict[str, Any] = json.loads(output.splitlines()[-1])
    return memory


def _allocated_bytes() -> int:
    """Return the allocated bytes of this process without mapped files; if there is no /proc, its peak memory."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return peak_bytes()


@contextmanager
def _watched(samples: list[int]) -> Iterator[None]:
    """Record the allocated memory every 5 ms while the block runs."""
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(0.005):
            samples.append(_allocated_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        stopped.set()
        watcher.join()


def main() -> None:
    """Measure the memory of an epoch over the bags of a store, after a warm-up epoch over two bags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", nargs="*", help="folder of the store, number of slides, tiles per slide")
    parser.add_argument("--slides", type=int, default=None, help="write a store with this many slides and measure it")
    parser.add_argument("--tiles", type=int, default=5_000, help="tiles per slide")
    parsed = parser.parse_args()
    if parsed.slides is None:
        folder, slides, tiles = parsed.store
        print(json.dumps(_memory(Path(folder), int(slides), int(tiles))))
        return
    with tempfile.TemporaryDirectory(prefix="clipit-benchmarks-") as temporary:
        store = write_features(Path(temporary), parsed.slides, parsed.tiles)
        bags = _open(store, parsed.slides, parsed.tiles)
        reading, epoch = seconds(lambda: _read(bags)), seconds(lambda: _epoch(bags))
        memory = _memory(store, parsed.slides, parsed.tiles)
        facts = {"bytes": parsed.slides * parsed.tiles * _DIM * 2, "bag": parsed.tiles * _DIM * 4}
        print(json.dumps({**facts, "reading": reading, "epoch": epoch, **memory}))


def _memory(store: Path, slides: int, tiles: int) -> dict[str, Any]:
    bags = _open(store, slides, tiles)
    few = bags.select(np.arange(min(2, slides)))
    _epoch(few)  # warm-up: imports and retained buffers
    before = _allocated_bytes()
    samples = [before]
    with _watched(samples):
        _epoch(bags)
    return {"before": before, "peak": max(samples), "grown": max(max(samples) - before, 1)}


if __name__ == "__main__":
    main()
