"""How well pairs agree with labels, where there are labels. For people to look at; nothing is chosen by it here."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float32, Int

from clipit.stores.index import Index


def agreement(
    pairs: pa.Table,
    labels: Mapping[str, int],
    *,
    index: Index | None = None,
    class_vectors: Float32[np.ndarray, "classes dim"] | None = None,
) -> dict[str, Any]:
    """Label figures of the first snippet of each labelled tile.

    Args:
        pairs: tile_id, rank, snippet_id, score.
        labels: Tile id -> class number; negative: no label. Only labels that training may see belong here.
        index: For `class_vectors`.
        class_vectors: Unit vectors of the class prompts, centred as the snippets are.

    Returns:
        `labelled`: tiles that count. `neighbours`: share of tiles whose label is the majority label of the *other*
        labelled tiles with the same snippet (equally frequent labels share the point), `neighbours_tiles`: tiles that
        have such others, `chance`: what always guessing the most frequent label would give. With class prompts
        `zero_shot`: share of tiles whose label is the class that the snippet's text is nearest to, and
        `score_auroc`: how well the score tells the right ones from the wrong ones (0.5: not at all). A figure is None
        where it is undefined; `undefined` says why.
    """
    first = pairs.filter(pa.array(np.asarray(pairs.column("rank")) == 0))
    label = np.asarray([labels.get(tile, -1) for tile in first.column("tile_id").to_pylist()], dtype=np.int64)
    known = label >= 0
    found: dict[str, Any] = {"labelled": int(known.sum()), "undefined": {}}
    names = ("neighbours", "zero_shot", "score_auroc")
    if not known.any():
        return found | dict.fromkeys((*names, "chance")) | {"undefined": dict.fromkeys(names, "no label is known")}
    snippets = np.asarray(first.column("snippet_id").to_pylist(), dtype=np.str_)[known]
    scores, label = np.asarray(first.column("score"), dtype=np.float64)[known], label[known]
    points = majority_points(np.unique(snippets, return_inverse=True)[1], label)
    counted = np.isfinite(points)
    found |= {
        "neighbours": float(points[counted].mean()) if counted.any() else None,
        "neighbours_tiles": int(counted.sum()),
        "chance": float(np.bincount(label).max() / len(label)),
        "zero_shot": None,
        "score_auroc": None,
    }
    if not counted.any():
        found["undefined"]["neighbours"] = "no two labelled tiles have the same snippet"
    if index is None or class_vectors is None:
        found["undefined"] |= dict.fromkeys(names[1:], "no class prompts are given")
        return found
    distinct, inverse = np.unique(snippets, return_inverse=True)
    vectors = index.vectors(np.searchsorted(index.ids, distinct))
    right = (vectors @ class_vectors.T).argmax(axis=1)[inverse] == label
    found["zero_shot"] = float(right.mean())
    found["score_auroc"] = auroc(scores[right], scores[~right])
    if found["score_auroc"] is None:
        found["undefined"]["score_auroc"] = "the zero-shot class is right for all or for none"
    return found


def majority_points(bags: Int[np.ndarray, "n"], labels: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """1 where a tile's label is the most frequent one of the others in its bag, 1/m if m labels are; nan if alone.

    Args:
        bags: Number of each tile's bag, from 0.
        labels: Class of each tile, from 0.
    """
    counts = np.zeros((int(bags.max()) + 1, int(labels.max()) + 1), dtype=np.int64)
    np.add.at(counts, (bags, labels), 1)
    others = counts[bags]
    rows = np.arange(len(bags))
    others[rows, labels] -= 1
    most = others.max(axis=1)
    tied = (others == most[:, None]).sum(axis=1)
    return np.where(most > 0, (others[rows, labels] == most) / tied, np.nan)


def auroc(positive: Float[np.ndarray, "p"], negative: Float[np.ndarray, "q"]) -> float | None:
    """Chance that a positive's score exceeds a negative's, ties half (Mann and Whitney 1947); None without either."""
    if not len(positive) or not len(negative):
        return None
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left")
    not_above = np.searchsorted(ordered, positive, side="right")
    return float((below + not_above).sum() / 2 / len(positive) / len(negative))
