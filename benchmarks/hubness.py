"""Hubness correction, in blocks, against plain searches of the same tiles and snippets."""

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness import Figure, Options, Work, alternate, ratios, seconds
from benchmarks.inputs import make_store

if TYPE_CHECKING:
    from clipit.config import PairingConfig
    from clipit.embedding import Store
    from clipit.index import Index

_DIM, _K = 512, 5
_GOAL = 1.0  # of two plain searches


def measure(options: Options) -> list[Figure]:
    """Biases and corrected search over two plain searches; Sinkhorn once, with its ten rounds and no goal."""
    from clipit.config import PairingConfig
    from clipit.index import build_index

    texts = make_store(options.folder, "text_store", options.size(16_384, 1_000), _DIM, seed=0)
    tiles = make_store(options.folder, "tile_store", options.size(8_192, 100), _DIM, seed=1)
    index = build_index(options.folder, texts)
    index.candidates(tiles.rows(np.arange(1)), 1)  # it is read now, not in the first round
    works: dict[str, Work] = {
        "plain": lambda: seconds(lambda: _plain(index, tiles)),
        "csls": _corrected(index, tiles, PairingConfig(correction="csls")),
        "inverted_softmax": _corrected(index, tiles, PairingConfig(correction="inverted_softmax")),
    }
    samples = alternate(works, options)
    facts = {"tiles": len(tiles.ids), "snippets": len(texts.ids), "dim": _DIM, "k": _K}
    facts["backend"] = index.artifact.manifest.facts["backend"]
    figures = []
    for name in ("csls", "inverted_softmax"):
        halves = [ratio / 2 for ratio in ratios(samples, name, "plain")]
        title = f"{name}: time against two plain searches"
        figures.append(Figure("hubness", title, halves, "", _GOAL, False, samples, facts))
    rules = PairingConfig(correction="sinkhorn")
    taken = _corrected(index, tiles, rules)() / min(samples["plain"])
    facts = facts | {"iterations": rules.correction_iterations}
    return [*figures, Figure("hubness", "sinkhorn: time against one plain search", [taken], facts=facts)]


def _plain(index: "Index", tiles: "Store") -> None:
    from clipit.embedding import centred
    from clipit.pairing.search import search

    mean = tiles.mean()
    for start in range(0, len(tiles.ids), 4096):
        rows = np.arange(start, min(start + 4096, len(tiles.ids)))
        search(index, centred(tiles.rows(rows), mean), _K)


def _corrected(index: "Index", tiles: "Store", rules: "PairingConfig") -> Work:
    def work() -> None:
        """Biases of all snippets, then the search with them."""
        from clipit.embedding import centred
        from clipit.pairing.selection import find, prepare

        mean = tiles.mean()
        ready = prepare(index, tiles, rules, block=4096, shown=False)
        for start in range(0, len(tiles.ids), 4096):
            rows = np.arange(start, min(start + 4096, len(tiles.ids)))
            find(ready, centred(tiles.rows(rows), mean), ready.owners[rows], _K)

    return lambda: seconds(work)
