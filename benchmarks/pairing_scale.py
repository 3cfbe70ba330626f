"""Exact pairing of large corpora: peak memory by the number of snippets, and time of one process relative to two."""

import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Measurement, Options, alternate, ratios, run_python
from benchmarks.inputs import make_store

if TYPE_CHECKING:
    from clipit.stores.embed import Store

_DIM = 512  # dimension of the embeddings
_TILES = 2_000  # tiles to pair, unless quick


def measure(options: Options) -> list[Measurement]:
    """Measure peak memory with 800,000 and with 100,000 snippets, and (unless quick) the time of two processes."""
    from clipit.stores.index import build_index

    few = make_store(options.folder, "text_store", options.size(100_000, 1_000), _DIM, seed=0)
    many = make_store(options.folder, "text_store", options.size(800_000, 9_000), _DIM, seed=0)
    tiles = make_store(options.folder, "tile_store", options.size(_TILES, 64), _DIM, seed=1)
    for texts in (few, many):
        build_index(options.folder, texts)
    memory = _memory(options, few, many, tiles)
    return memory if options.quick else memory + _two_processes(options, many, tiles)


def _memory(options: Options, few: "Store", many: "Store", tiles: "Store") -> list[Measurement]:
    peaks: dict[str, list[float]] = {}
    for texts in (few, many):
        run = pair(options.folder, texts, tiles, tiles.size, f"{texts.size}")
        peaks[f"{texts.size} snippets"] = [run["peak"]]
        peaks[f"{texts.size} snippets, before pairing"] = [run["before"]]
    ratio = peaks[f"{many.size} snippets"][0] / peaks[f"{few.size} snippets"][0]
    title = f"peak memory of pairing, {many.size} snippets / {few.size} snippets"
    facts = {"tiles": tiles.size, "dim": _DIM}
    return [Measurement("pairing_scale", title, [ratio], goal=1.1, samples=peaks, facts=facts)]


def _two_processes(options: Options, texts: "Store", tiles: "Store") -> list[Measurement]:
    """Compare one process with two that share blocks of tiles or shards of snippets, each with half of the cores.

    The last row is the upper bound that the cores allow: a bare search with faiss, which shares and writes no data.
    """
    cores = os.cpu_count() or 1
    measurements = []
    for work, block in {"blocks of tiles": -(-tiles.size // 2), "shards of snippets": tiles.size}.items():
        one, two = (partial(_seconds, options, texts, tiles, block, processes) for processes in (1, 2))
        samples = alternate({"one": one, "two": two}, options)
        facts = {"tiles": tiles.size, "snippets": texts.size, "dim": _DIM, "block": block, "cores": cores}
        title = f"time of pairing, one process / two that share {work}"
        goal = 1.8 if cores > 1 else None
        measurements.append(
            Measurement(
                "pairing_scale", title, ratios(samples, "one", "two"), "", goal, True, samples=samples, facts=facts
            )
        )
    one, two = (partial(_search_seconds, texts.size, processes) for processes in (1, 2))
    samples = alternate({"one": one, "two": two}, options)
    title = "time of a bare search, one process / two"
    facts = {"queries": _TILES, "rows": texts.size, "dim": _DIM, "cores": cores}
    values = ratios(samples, "one", "two")
    return [*measurements, Measurement("pairing_scale", title, values, at_least=True, samples=samples, facts=facts)]


def _seconds(options: Options, texts: "Store", tiles: "Store", block: int, processes: int) -> float:
    """Return the seconds that pairing takes in one or more processes, each with half of the cores."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:  # new pairs each time
        name = Path(folder).name
        return float(pair(options.folder, texts, tiles, block, name, processes, _half_of_cores())["seconds"])


def _search_seconds(rows: int, processes: int) -> float:
    """Return the seconds of a search without stores in one or more processes, each with half of the cores."""
    return float(_run(["search", str(rows)], processes, _half_of_cores())["seconds"])


def _half_of_cores() -> int:
    return max(1, (os.cpu_count() or 1) // 2)


def pair(
    root: Path, texts: "Store", tiles: "Store", block: int, name: str, processes: int = 1, threads: int | None = None
) -> dict[str, Any]:
    """Pair tiles with snippets in new processes, and return the seconds and the peak memory in bytes.

    Args:
        root: Output root, which contains the index.
        texts: Store of snippet embeddings.
        tiles: Store of tile embeddings.
        block: Number of tiles that are paired at once.
        name: Suffix that distinguishes the folders of several measurements.
        processes: Number of processes.
        threads: Threads per process; None for the default.
    """
    folders = [str(store.artifact.folder) for store in (texts, tiles)]
    return _run([str(root), *folders, str(block), name], processes, threads)


def _run(arguments: list[str], processes: int, threads: int | None) -> dict[str, Any]:
    """Run `benchmarks.pairing_memory` in new processes, and return the JSON that it prints."""
    command = ["-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--nproc_per_node", str(processes), "--standalone", "-m"]
    command += ["benchmarks.pairing_memory", *arguments]
    changes = {} if threads is None else dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    environment = {**os.environ, **changes, **({"ACCELERATE_USE_CPU": "1"} if processes > 1 else {})}
    output = run_python(command, environment=environment)
    measured: dict[str, Any] = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    return measured
