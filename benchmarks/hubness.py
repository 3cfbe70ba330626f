"""Time of blockwise hubness correction, relative to plain searches of the same tiles and snippets.

`python -m benchmarks.hubness --tiles 30000 --snippets 100000` measures at a larger size than `python -m benchmarks`
does, and prints the number of floating-point operations for 300,000 tiles and 1,000,000 snippets.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import Measurement, Options, Workload, alternate, ratios, seconds, table
from benchmarks.inputs import make_store

if TYPE_CHECKING:
    from clipit.config.run import PairingConfig
    from clipit.stores.embed import Store
    from clipit.stores.index import Index

_DIM, _K, _BLOCK = 512, 5, 4096  # dimension of the embeddings, snippets per tile, tiles per block
_GOAL = 1.0  # maximum time, relative to two plain searches
_LARGE = (300_000, 1_000_000)  # numbers of tiles and snippets to which the goal refers


def measure(options: Options) -> list[Measurement]:
    """Measure all corrections at a size that is small enough for a run of all benchmarks."""
    tiles, snippets = options.size(8_192, 100), options.size(16_384, 1_000)
    return measure_size(options, tiles, snippets, with_sinkhorn=True)


def measure_size(options: Options, n_tiles: int, n_snippets: int, *, with_sinkhorn: bool) -> list[Measurement]:
    """Measure the time to compute biases and search with them, relative to two plain searches.

    Args:
        options: Folder, size and number of rounds of the benchmark.
        n_tiles: Number of tiles.
        n_snippets: Number of snippets.
        with_sinkhorn: Whether to also measure Sinkhorn, in a single round and without a goal.
    """
    from clipit.config.run import PairingConfig
    from clipit.pairing.nearest import search
    from clipit.stores.index import build_index

    texts = make_store(options.folder, "text_store", n_snippets, _DIM, seed=0)
    tiles = make_store(options.folder, "tile_store", n_tiles, _DIM, seed=1)
    index = build_index(options.folder, texts)
    search(index, tiles.rows(np.arange(1)), 1)  # read the index before the first round
    workloads: dict[str, Workload] = {
        "plain": lambda: seconds(lambda: _plain(index, tiles)),
        "csls": _corrected(index, tiles, PairingConfig(correction="csls")),
        "inverted_softmax": _corrected(index, tiles, PairingConfig(correction="inverted_softmax")),
    }
    samples = alternate(workloads, options)
    facts: dict[str, Any] = {"tiles": len(tiles.ids), "snippets": len(texts.ids), "dim": _DIM, "k": _K}
    facts |= {"backend": index.artifact.manifest.facts["backend"], "at_300k_x_1M_not_measured": large_size()}
    measurements = []
    for name in ("csls", "inverted_softmax"):
        halves = [ratio / 2 for ratio in ratios(samples, name, "plain")]
        title = f"{name}: time relative to two plain searches"
        measurements.append(Measurement("hubness", title, halves, "", _GOAL, False, samples, facts))
    if not with_sinkhorn:
        return measurements
    rules = PairingConfig(correction="sinkhorn")
    ratio_of_one = _corrected(index, tiles, rules)() / min(samples["plain"])
    facts = facts | {"iterations": rules.correction_iterations}
    return [
        *measurements,
        Measurement("hubness", "sinkhorn: time relative to one plain search", [ratio_of_one], facts=facts),
    ]


def large_size() -> str:
    """State how many floating-point operations a corrected search takes at the goal's size (not measured)."""
    tiles, snippets = _LARGE
    once = 2 * tiles * snippets * _DIM
    return (
        f"{tiles:,} tiles x {snippets:,} snippets of {_DIM} dimensions: {once / 1e12:,.0f} TFLOP per pass; a plain "
        f"search takes one pass, csls and inverted_softmax two, sinkhorn one more than its number of rounds"
    )


def _plain(index: "Index", tiles: "Store") -> None:
    from clipit.pairing.nearest import search
    from clipit.vectors import centred

    queries = centred(tiles.rows(np.arange(tiles.size)), tiles.mean())
    search(index, queries, _K, block=_BLOCK)


def _corrected(index: "Index", tiles: "Store", rules: "PairingConfig") -> Workload:
    def workload() -> None:
        from clipit.pairing.pair_rules import find_candidates, prepare_selection
        from clipit.vectors import centred

        queries = centred(tiles.rows(np.arange(tiles.size)), tiles.mean())
        selection = prepare_selection(index, tiles, rules, block=_BLOCK, shown=False)
        find_candidates(selection, queries, selection.owners, _K, block=_BLOCK)

    return lambda: seconds(workload)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure at the given size and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hubness", description=__doc__)
    parser.add_argument("--tiles", type=int, default=30_000)
    parser.add_argument("--snippets", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3, help="measured rounds, after one warm-up round")
    parsed = parser.parse_args(arguments)
    if min(parsed.tiles, parsed.snippets, parsed.repeats) < 1:
        parser.error("--tiles, --snippets and --repeats must be at least 1")
    with tempfile.TemporaryDirectory(prefix="clipit-hubness-") as temporary:
        options = Options(Path(temporary), quick=False, repeats=parsed.repeats)
        measurements = measure_size(options, parsed.tiles, parsed.snippets, with_sinkhorn=False)
    print(f"{table(measurements, quick=False)}\n\nnot measured: {large_size()}")


if __name__ == "__main__":
    main()
