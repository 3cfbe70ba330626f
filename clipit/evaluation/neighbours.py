"""Nearest neighbours by cosine similarity, k-NN classification, and SimpleShot (nearest class mean)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped

from clipit.errors import DataError
from clipit.evaluation.features import Features
from clipit.evaluation.predictions import softmax
from clipit.vectors import unit

_DECIMALS = 6  # cosines that agree to this many decimals are ties; otherwise, rounding errors would break ties
_CELLS = 16_000_000  # cosines held in memory at once: 64 MiB


def nearest_neighbours(
    queries: Features, gallery: Features, k: int, *, exclude_groups: bool = False, cells: int = _CELLS
) -> Int64[np.ndarray, "q k"]:
    """Find the gallery rows nearest to each query by cosine similarity, nearest first; ties go to the lowest id.

    A query never retrieves the item with its own id. Rows with fewer than k permitted items are padded with -1.

    Args:
        queries: Features to search for, of any norm.
        gallery: Features to search in, of any norm.
        k: Number of neighbours per query.
        exclude_groups: Whether to exclude items of the query's group, if it is known.
        cells: Number of cosines held in memory at once; does not change the result.
    """
    by_id = np.argsort(gallery.ids, kind="stable")
    query_names, item_names = _encode_names(queries.ids, gallery.ids[by_id])
    query_groups, item_groups = _encode_names(queries.groups, gallery.groups[by_id])
    ungrouped = queries.groups == ""

    def forbid(rows: slice) -> Bool[np.ndarray, "b m"]:
        forbidden: Bool[np.ndarray, "b m"] = query_names[rows, None] == item_names[None, :]
        if exclude_groups:
            forbidden |= (query_groups[rows, None] == item_groups[None, :]) & ~ungrouped[rows, None]
        return forbidden

    nearest = _search(queries.vectors, gallery.vectors[by_id], k, forbid, cells)
    return np.where(nearest >= 0, by_id[nearest], -1).astype(np.int64)


def class_votes(
    rows: Int64[np.ndarray, "q k"], labels: Int64[np.ndarray, " m"], n_classes: int
) -> Float32[np.ndarray, "q c"]:
    """Compute the fraction of each class among the neighbours of each query; all 0 for a query without neighbours.

    Rows of -1 are ignored. `argmax` resolves ties in favour of the lowest class index.
    """
    votes = np.zeros((len(rows), n_classes), dtype=np.float32)
    query, rank = np.nonzero(rows >= 0)
    np.add.at(votes, (query, labels[rows[query, rank]]), 1)
    shares: Float32[np.ndarray, "q c"] = votes / np.maximum(votes.sum(axis=1, keepdims=True), 1)
    return shares


def knn_probabilities(
    train: Features, vectors: Float[np.ndarray, "n d"], n_classes: int, k: int = 20
) -> Float32[np.ndarray, "n c"]:
    """Classify by k-NN: fraction of each class among the k nearest labelled training tiles, unweighted (k = 20 in UNI).

    With fewer than k labelled tiles, all of them are used.

    Raises:
        DataError: No training tile has a label.
    """
    train = _require_labels(train)
    return class_votes(_search(vectors, train.vectors, min(k, len(train))), train.labels, n_classes)


@dataclass(frozen=True)
class SimpleShot:
    """Nearest class mean after centring and L2 normalisation (CL2N, arXiv 1911.04623); fitted by `simple_shot`.

    Attributes:
        mean: Mean to subtract from every vector.
        prototypes: Mean of the centred, normalised vectors of each class; NaN for a class without training tiles.
    """

    mean: Float64[np.ndarray, " d"]
    prototypes: Float64[np.ndarray, "c d"]

    def probabilities(self, vectors: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n c"]:
        """Compute the softmax of the negative squared distances to the class means; not calibrated.

        A class without training tiles has probability 0. With x' = (x - m) / |x - m|, the squared distance to p is
        |x'|^2 - 2 x'p + |p|^2, so the centred vectors never have to be stored.
        """
        known = np.isfinite(self.prototypes).all(axis=1)
        prototypes = self.prototypes[known]
        rows = vectors.astype(np.float64, copy=False)
        inner = rows @ np.concatenate([self.mean[None], prototypes]).T
        mean_inner = np.concatenate([self.mean[None], prototypes]) @ self.mean
        squares = np.einsum("nd,nd->n", rows, rows) - 2 * inner[:, 0] + mean_inner[0]
        lengths = np.sqrt(np.maximum(squares, 1e-24))[:, None]
        logits = np.full((len(rows), len(known)), -np.inf)
        # |x'|^2 is the same for all classes, so it cancels in the softmax.
        logits[:, known] = 2 * (inner[:, 1:] - mean_inner[1:]) / lengths - (prototypes**2).sum(axis=1)
        return softmax(logits)


def simple_shot(train: Features, n_classes: int) -> SimpleShot:
    """Fit the class means of labelled training tiles, after centring and L2 normalisation.

    Raises:
        DataError: No training tile has a label.
    """
    train = _require_labels(train)
    mean = train.vectors.mean(axis=0, dtype=np.float64)
    rows = unit(train.vectors - mean)
    prototypes = np.full((n_classes, rows.shape[1]), np.nan)
    for c in np.unique(train.labels).tolist():
        prototypes[c] = rows[train.labels == c].mean(axis=0)
    return SimpleShot(mean, prototypes)


def _search(
    vectors: Float[np.ndarray, "q d"],
    items: Float[np.ndarray, "m d"],
    k: int,
    forbid: Callable[[slice], Bool[np.ndarray, "b m"]] | None = None,
    cells: int = _CELLS,
) -> Int64[np.ndarray, "q k"]:
    """Find the rows of the k nearest items by cosine similarity; ties keep the item order; padded with -1."""
    columns = unit(items).astype(np.float32).T
    nearest = np.full((len(vectors), k), -1, dtype=np.int64)
    block = max(1, cells // max(1, len(items)))
    for start in range(0, len(vectors), block):
        rows = slice(start, start + block)
        scores = (unit(vectors[rows]).astype(np.float32) @ columns).round(_DECIMALS)
        if forbid is not None:
            scores[forbid(rows)] = -np.inf
        for row, query_scores in enumerate(scores, start):
            best = _top_k(query_scores, k)
            nearest[row, : len(best)] = best
    return nearest


def _encode_names(
    first: Shaped[np.ndarray, " q"], second: Shaped[np.ndarray, " m"]
) -> tuple[Int64[np.ndarray, " q"], Int64[np.ndarray, " m"]]:
    """Encode names as integers, which are faster to compare."""
    codes = np.unique(np.concatenate([first, second]), return_inverse=True)[1].astype(np.int64)
    return codes[: len(first)], codes[len(first) :]


def _top_k(scores: Float32[np.ndarray, " m"], k: int) -> Int64[np.ndarray, " best"]:
    """Return the indices of the k highest finite scores, highest first, ties by index."""
    k = min(k, int(np.isfinite(scores).sum()))
    if not k:
        return np.empty(0, dtype=np.int64)
    edge = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero(scores >= edge)
    order = np.argsort(-scores[candidates], kind="stable")[:k]
    return np.asarray(candidates[order], dtype=np.int64)


def _require_labels(train: Features) -> Features:
    train = train.labelled()
    if not len(train):
        raise DataError("no training tile has a label", where="tiles.labels", fix="label some tiles")
    return train
