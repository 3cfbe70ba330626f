"""Choose the search settings of an approximate index, and measure recall against exact search on a sample."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from clipit.distributed import get_processes
from clipit.errors import counted
from clipit.pairing.nearest import SPARE, search
from clipit.stores.approximate import MIN_LIST_LENGTH, SearchSettings
from clipit.stores.embed import Store
from clipit.stores.index import Index
from clipit.stores.stored_rows import centred_rows

logger = logging.getLogger(__name__)

TARGET = 0.99
"""Target recall of the chosen settings."""
LOW_RECALL = 0.95
"""Recall below which a warning is logged."""
SAMPLE = 600
"""Number of tiles that are also searched exactly: half to choose the settings, half to measure the recall."""
_MAX_CANDIDATES = 1024  # largest number of candidates that is tried
_MAX_LIST_LENGTH = 4096  # largest ef_search that is tried
_MIN_GAIN = 0.005  # gain in recall that justifies a slower search


@dataclass(frozen=True)
class _Queries:
    """Embeddings of sampled tiles, and their k nearest snippets."""

    vectors: Float32[np.ndarray, "q dim"]
    nearest: Int[np.ndarray, "q k"]


def fit_search(
    index: Index, tiles: Store, mean: Float32[np.ndarray, "dim"] | None, k: int
) -> tuple[Index, dict[str, Any]]:
    """Choose the search settings of an approximate index that are not configured, and measure its recall.

    Must be called by all processes. The recall at k is the fraction of the k nearest snippets that are found, measured
    on tiles that were not used to choose settings. If the recall is below 0.95, a warning names the keys to raise.

    Args:
        mean: Mean to subtract from the tile embeddings; None for no centring.

    Returns:
        Index with all settings, and the entries of the summary: key, settings, recall, number of tiles and advice.
    """
    rows = np.unique(np.linspace(0, tiles.size - 1, min(SAMPLE, tiles.size)).astype(np.int64))
    vectors = centred_rows(tiles, rows, mean)
    nearest = search(index, vectors, k, shared=get_processes().count > 1, exact=True)[0]
    tuning = _Queries(vectors[::2], nearest[::2])
    held_out = _Queries(vectors[1::2], nearest[1::2]) if len(rows) > 1 else tuning
    settings = index.settings
    fitted = replace(index, settings=_choose(index, tuning, settings))
    recall = _recall(fitted, held_out)
    advice = None
    if recall < LOW_RECALL:
        better = replace(index, settings=_choose(index, tuning, SearchSettings()))
        advice = _advice(fitted, better, _recall(better, held_out))
    measured = {
        "index": index.artifact.manifest.facts["key"],
        "tiles": len(held_out.vectors),
        "k": nearest.shape[1],
        "recall": recall,
        "nprobe": fitted.settings.nprobe,
        "ef_search": fitted.settings.ef_search,
        "candidates": fitted.settings.candidates,
        "advice": advice,
    }
    if get_processes().main and advice is not None:
        logger.warning(f"index {measured['index']}: recall {recall:.3f} is low: {advice}")
    return fitted, measured


def recall_lines(measured: dict[str, Any]) -> list[str]:
    """Format the entries of `fit_search` for the summary, except the advice, which `fit_search` logs."""
    names = {"nprobe": "nprobe {:,}", "ef_search": "ef_search {:,}", "candidates": "{:,} candidates scored exactly"}
    settings = [text.format(measured[name]) for name, text in names.items() if measured[name] is not None]
    return [
        f"index {measured['index']}: recall@{measured['k']} {measured['recall']:.3f} against exact search on "
        f"{counted(measured['tiles'], 'tile')} ({', '.join(settings)})"
    ]


def _choose(index: Index, queries: _Queries, configured: SearchSettings) -> SearchSettings:
    """Choose the unset settings: first the fastest search that reaches the target, then the fewest candidates."""
    total, k = index.size, queries.nearest.shape[1]
    max_candidates = configured.candidates or min(_MAX_CANDIDATES, total)
    efforts = [configured]
    if configured.nprobe is None and index.faiss_index.lists:
        efforts = [replace(configured, nprobe=count) for count in _doubling(1, index.faiss_index.lists)]
    elif configured.ef_search is None and index.faiss_index.has_graph:
        lengths = _doubling(MIN_LIST_LENGTH, max(MIN_LIST_LENGTH, min(_MAX_LIST_LENGTH, total)))
        efforts = [replace(configured, ef_search=length) for length in lengths]
    chosen = _first_reaching(
        efforts, lambda effort: _recall(replace(index, settings=replace(effort, candidates=max_candidates)), queries)
    )
    if configured.candidates is not None:
        return chosen
    counts = [2**power for power in range(1, 11) if k + SPARE <= 2**power < max_candidates]
    counts.append(max(max_candidates, min(k + SPARE, total)))
    settings = [replace(chosen, candidates=count) for count in counts]
    return _first_reaching(settings, lambda setting: _recall(replace(index, settings=setting), queries))


def _first_reaching(settings: Sequence[SearchSettings], recall: Callable[[SearchSettings], float]) -> SearchSettings:
    """Return the first settings that reach the target recall or, if none do, come close to the best recall."""
    if len(settings) == 1:
        return settings[0]
    recalls: list[float] = []
    for setting in settings:
        recalls.append(recall(setting))
        if recalls[-1] >= TARGET:
            return setting
    best = max(recalls)
    return next(setting for setting, reached in zip(settings, recalls, strict=True) if reached >= best - _MIN_GAIN)


def _recall(index: Index, queries: _Queries) -> float:
    """Measure the fraction of the nearest snippets that are candidates; exact scoring then ranks these first."""
    total, k = queries.nearest.shape
    n_candidates = min(max(k, index.settings.candidates or k + SPARE), index.size)

    def hits(part: Int[np.ndarray, "_"]) -> int:
        candidates = index.candidates(queries.vectors[part], n_candidates, min(k, n_candidates))
        return int(
            sum(np.isin(nearest, row).sum() for nearest, row in zip(queries.nearest[part], candidates, strict=True))
        )

    processes = get_processes()
    return float(sum(processes.map_blocks(total, -(-total // processes.count), hits)) / (total * k))


def _doubling(first: int, last: int) -> list[int]:
    """List `first`, 2 `first`, 4 `first` and so on up to `last`, and `last` itself."""
    values = [first]
    while values[-1] < last:
        values.append(min(2 * values[-1], last))
    return values


def _advice(index: Index, better: Index, recall: float) -> str:
    """Suggest keys to raise, or a different index if no setting helps."""
    raised = [
        f"pairing.{name} from {before or 1:,} to {after:,}"
        for name in ("nprobe", "ef_search", "candidates")
        if (after := getattr(better.settings, name)) is not None
        and after > ((before := getattr(index.settings, name)) or 0)
    ]
    other = "use an index with larger codes (SQ8, or PQ with more subquantizers), or pairing.index=Flat, which is exact"
    if not raised:
        return f"no setting of this index gives a higher recall; {other}"
    text = f"raise {' and '.join(raised)} (or set to null) for a recall of {recall:.3f}"
    return text if recall >= LOW_RECALL else f"{text}; for more, {other}"
