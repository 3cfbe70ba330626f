"""Recall of an approximate index against exact search, and the settings that reach it, on a sample of the tiles."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float32, Int

from clipit.distributed import get_processes
from clipit.pairing.nearest import SPARE, search
from clipit.stores.approximate import LEAST_GRAPH_LIST, SearchSettings
from clipit.stores.embed import Store
from clipit.stores.index import Index
from clipit.stores.stored_rows import centred_rows

logger = logging.getLogger(__name__)

TARGET = 0.99
"""Recall that the chosen settings should reach."""
LOW_RECALL = 0.95
"""Recall below which a warning is logged."""
SAMPLE = 600
"""Number of tiles that are also searched exactly: half to choose the settings, half to measure the recall."""
_MOST_CANDIDATES = 1024
_LONGEST_LIST = 4096
_NO_GAIN = 0.005  # gain in recall below which a larger effort is not worth it

T = TypeVar("T")


@dataclass(frozen=True)
class _Queries:
    """Tiles of the sample with their k nearest snippets."""

    vectors: Float32[np.ndarray, "q dim"]
    nearest: Int[np.ndarray, "q k"]


def fit_search(
    index: Index, tiles: Store, mean: Float32[np.ndarray, "dim"] | None, k: int
) -> tuple[Index, dict[str, Any]]:
    """Choose the settings of an approximate index that the configuration leaves open, and measure its recall.

    Must be called in all processes. The recall at k is the share of the k nearest snippets that are found, measured on
    tiles that no setting was chosen on. A recall below 0.95 is logged as a warning with the keys to raise.

    Args:
        index: Approximate index of the snippets.
        tiles: Store of the tiles to pair.
        mean: Mean to subtract from the tile embeddings; None for no centring.
        k: Number of snippets per tile.

    Returns:
        Index with all settings, and its figures for the summary: key, settings, recall, number of tiles and advice.
    """
    rows = np.unique(np.linspace(0, tiles.size - 1, min(SAMPLE, tiles.size)).astype(np.int64))
    vectors = centred_rows(tiles, rows, mean)
    nearest = search(index, vectors, k, shared=get_processes().count > 1, exact=True)[0]
    chosen_on = _Queries(vectors[::2], nearest[::2])
    measured_on = _Queries(vectors[1::2], nearest[1::2]) if len(rows) > 1 else chosen_on
    given = index.settings
    fitted = replace(index, settings=_choose(index, chosen_on, given))
    recall = _recall(fitted, measured_on)
    advice = None
    if recall < LOW_RECALL:
        better = replace(index, settings=_choose(index, chosen_on, SearchSettings()))
        advice = _advice(fitted, better, _recall(better, measured_on))
    figures = {
        "index": index.artifact.manifest.facts["key"],
        "tiles": len(measured_on.vectors),
        "k": nearest.shape[1],
        "recall": recall,
        "nprobe": fitted.settings.nprobe,
        "ef_search": fitted.settings.ef_search,
        "candidates": fitted.settings.candidates,
        "advice": advice,
    }
    if get_processes().main and advice is not None:
        logger.warning(f"index {figures['index']}: recall {recall:.3f} is low: {advice}")
    return fitted, figures


def recall_lines(figures: dict[str, Any]) -> list[str]:
    """Format the figures of `fit_search` for the summary, without the advice, which `fit_search` logs."""
    names = {"nprobe": "nprobe {:,}", "ef_search": "ef_search {:,}", "candidates": "{:,} candidates scored exactly"}
    settings = [text.format(figures[name]) for name, text in names.items() if figures[name] is not None]
    return [
        f"index {figures['index']}: recall@{figures['k']} {figures['recall']:.3f} against exact search on "
        f"{figures['tiles']} tiles ({', '.join(settings)})"
    ]


def _choose(index: Index, queries: _Queries, given: SearchSettings) -> SearchSettings:
    """Choose the settings that are not given: the least effort that reaches the target, then the fewest candidates."""
    total, k = index.size, queries.nearest.shape[1]
    wide = given.candidates or min(_MOST_CANDIDATES, total)
    efforts = [given]
    if given.nprobe is None and index.faiss_index.lists:
        efforts = [replace(given, nprobe=count) for count in _doubled(1, index.faiss_index.lists)]
    elif given.ef_search is None and index.faiss_index.has_graph:
        lengths = _doubled(LEAST_GRAPH_LIST, max(LEAST_GRAPH_LIST, min(_LONGEST_LIST, total)))
        efforts = [replace(given, ef_search=length) for length in lengths]
    chosen = _least(
        efforts, lambda effort: _recall(replace(index, settings=replace(effort, candidates=wide)), queries), TARGET
    )
    if given.candidates is not None:
        return chosen
    widths = [2**power for power in range(1, 11) if k + SPARE <= 2**power < wide]
    settings = [replace(chosen, candidates=count) for count in [*widths, max(wide, min(k + SPARE, total))]]
    return _least(settings, lambda each: _recall(replace(index, settings=each), queries), TARGET)


def _least(values: Sequence[T], recall: Callable[[T], float], goal: float) -> T:
    """Return the first value whose recall reaches the goal, or nearly the best recall if none does."""
    recalls: list[float] = []
    if len(values) == 1:
        return values[0]
    for value in values:
        recalls.append(recall(value))
        if recalls[-1] >= goal:
            return value
    best = max(recalls)
    return next(value for value, reached in zip(values, recalls, strict=True) if reached >= best - _NO_GAIN)


def _recall(index: Index, queries: _Queries) -> float:
    """Measure the share of the nearest snippets that are among the candidates; exact scoring then ranks them first."""
    total, k = queries.nearest.shape
    wide = min(max(k, index.settings.candidates or k + SPARE), index.size)

    def hits(part: Int[np.ndarray, "_"]) -> int:
        candidates = index.candidates(queries.vectors[part], wide, min(k, wide))
        return int(
            sum(np.isin(nearest, row).sum() for nearest, row in zip(queries.nearest[part], candidates, strict=True))
        )

    return float(sum(_shared(total, hits)) / (total * k))


def _shared(count: int, compute: Callable[[Int[np.ndarray, "_"]], T]) -> list[T]:
    """Apply a function to one part of the queries per process."""
    processes = get_processes()
    return processes.map_blocks(count, -(-count // processes.count), compute)


def _doubled(first: int, last: int) -> list[int]:
    """Return first, twice and four times as many, and so on, up to the last."""
    values = [first]
    while values[-1] < last:
        values.append(min(2 * values[-1], last))
    return values


def _advice(index: Index, better: Index, recall: float) -> str:
    """Name the keys to raise, or another index if no setting helps."""
    now, then = index.settings, better.settings
    raised = [
        f"pairing.{name} from {before or 1:,} to {after:,}"
        for name in ("nprobe", "ef_search", "candidates")
        if (after := getattr(then, name)) is not None and after > ((before := getattr(now, name)) or 0)
    ]
    other = "use a key with larger codes (SQ8, or PQ with more of them), or pairing.index=Flat, which is exact"
    if not raised:
        return f"no setting of this index finds more; {other}"
    text = f"raise {' and '.join(raised)} (or set null) for a recall of {recall:.3f}"
    return text if recall >= LOW_RECALL else f"{text}; for more, {other}"
