"""Time of pairing tiles relative to a bare matrix product with top-k, and its peak memory."""

from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float32, Int

from benchmarks.harness import Measurement, Options, Workload, alternate, ratios, seconds
from benchmarks.inputs import make_store
from benchmarks.pairing_scale import pair

if TYPE_CHECKING:
    from clipit.stores.embed import Store

_DIM, _K = 512, 5  # dimension of the embeddings, snippets per tile
_MIB = 1024**2


def measure(options: Options) -> list[Measurement]:
    """Measure time relative to the faster of two bare products (torch and numpy, float32), and peak memory."""
    from clipit.stores.index import build_index

    root = options.folder
    texts = make_store(root, "text_store", options.size(100_000, 2_000, 1_000_000), _DIM, seed=0)
    tiles = make_store(root, "tile_store", options.size(2_000, 100, 100_000), _DIM, seed=1)
    build_index(root, texts, backend=_backend(options))
    if options.gpu:
        return _time(options, texts, tiles)
    return _time(options, texts, tiles) + _memory(options, texts)


def _time(options: Options, texts: "Store", tiles: "Store") -> list[Measurement]:
    import torch

    from clipit.distributed import get_processes
    from clipit.pairing.pairs import pair_tiles, search
    from clipit.stores.index import build_index
    from clipit.vectors import centred

    index = build_index(options.folder, texts, backend=_backend(options))
    queries = centred(tiles.rows(np.arange(len(tiles.ids))), tiles.mean())
    keys = index.vectors(np.arange(len(index.ids)))
    number = count()

    def pairs() -> float:
        # Open the index again, as a new process does.
        fresh = build_index(options.folder, texts, backend=_backend(options))
        root = options.folder / f"pairs{next(number)}"
        return seconds(lambda: pair_tiles(root, fresh, tiles, k=_K))

    device = get_processes().device
    keys_on_device = torch.from_numpy(keys).to(device)
    block = 4096 if options.gpu else len(queries)

    def with_torch() -> Int[np.ndarray, "q k"]:
        parts = [torch.from_numpy(queries[start : start + block]) for start in range(0, len(queries), block)]
        best = [(part.to(device) @ keys_on_device.T).topk(_K, dim=1).indices.cpu() for part in parts]
        return torch.cat(best).numpy()

    def with_numpy() -> Int[np.ndarray, "q k"]:
        return _top(queries @ keys.T)

    workloads: dict[str, Workload] = {
        "search": lambda: seconds(lambda: search(index, queries, _K)),
        "pair_tiles": pairs,
        "torch": lambda: seconds(with_torch),
    }
    if not options.gpu:
        workloads["numpy"] = lambda: seconds(with_numpy)
    samples = alternate(workloads, options)
    bare = min(
        sorted(workloads.keys() & {"torch", "numpy"}), key=lambda name: sorted(samples[name])[options.repeats // 2]
    )
    facts = {
        "tiles": len(queries),
        "snippets": len(keys),
        "dim": _DIM,
        "k": _K,
        "backend": index.artifact.manifest.facts["backend"],
        "same_rows_as_torch": float((search(index, queries, _K)[0] == with_torch()).mean()),
        "bare": bare,
    }
    names = {"search": "search, index open", "pair_tiles": "pair_tiles, index read and pairs written"}
    return [
        Measurement(
            "pairing", f"{name}: time relative to {bare}", ratios(samples, key, bare), "", 1.0, False, samples, facts
        )
        for key, name in names.items()
    ]


def _backend(options: Options) -> Literal["auto", "torch"]:
    """Return the search library to measure: torch on a GPU, because faiss-cpu does not use it."""
    return "torch" if options.gpu else "auto"


def _top(scores: Float32[np.ndarray, "q n"]) -> Int[np.ndarray, "q k"]:
    """Return the columns of each row's largest scores, in descending order."""
    columns = np.argpartition(-scores, _K - 1, axis=1)[:, :_K]
    order = np.argsort(-np.take_along_axis(scores, columns, 1), axis=1)
    return np.take_along_axis(columns, order, 1)


def _memory(options: Options, texts: "Store") -> list[Measurement]:
    """Measure the peak memory of processes that pair a few tiles, and ten times as many."""
    few = options.size(2_000, 100)
    stores = {n: make_store(options.folder, "tile_store", n, _DIM, seed=1) for n in (few, 10 * few)}
    cases = {"few": (few, few), "many": (10 * few, few), "many, default block": (10 * few, 4096)}
    runs_of: dict[str, list[dict[str, Any]]] = {
        name: [
            pair(options.folder, texts, stores[n], block, f"{n}-{block}-{turn}") for turn in range(options.size(2, 1))
        ]
        for name, (n, block) in cases.items()
    }
    samples = {name: [float(run["peak"]) for run in runs] for name, runs in runs_of.items()}
    facts = {"tiles": few, "snippets": len(texts.ids), "block": few, "before_pairing": runs_of["few"][0]["before"]}
    whole = [value / _MIB for value in samples["many, default block"]]
    return [
        Measurement(
            "pairing",
            f"peak memory, {10 * few} tiles / {few} tiles, in blocks of {few}",
            ratios(samples, "many", "few"),
            goal=1.1,
            samples=samples,
            facts=facts,
        ),
        Measurement(
            "pairing", f"peak memory, {10 * few} tiles in blocks of 4096", whole, "MiB", samples=samples, facts=facts
        ),
    ]
