"""Nearest neighbours by cosine, k-NN votes, and SimpleShot's nearest class mean."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped

from clipit.errors import DataError, explain
from clipit.evaluation.features import Features
from clipit.evaluation.predictions import softmax

_DECIMALS = 6  # cosines nearer than this are ties; float error must not decide
_CELLS = 16_000_000  # cosines held at once: 64 MiB
_SHORTEST = 1e-12


def _unit(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows divided by their L2 norm; a row of length 0 stays 0."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Float[np.ndarray, "n d"] = vectors / np.maximum(lengths, _SHORTEST)
    return unit


def nearest_rows(
    queries: Features, gallery: Features, k: int, *, exclude_groups: bool = False, cells: int = _CELLS
) -> Int64[np.ndarray, "q k"]:
    """Rows of the gallery nearest to each query by cosine, nearest first; ties go to the lowest id.

    A query never finds the item of its own id. Where fewer than k items may be found, the rest of the row is -1.

    Args:
        queries: Any vectors; they are normalised here.
        gallery: What is searched.
        k: Neighbours per query.
        exclude_groups: Leave out items of the query's own group, where that is known.
        cells: Cosines held at once; bounds the memory, changes nothing else.
    """
    by_id = np.argsort(gallery.ids, kind="stable")
    names, own = _codes(queries.ids, gallery.ids[by_id])
    groups, of_group = _codes(queries.groups, gallery.groups[by_id])
    unknown = queries.groups == ""

    def forbidden(rows: slice) -> Bool[np.ndarray, "b m"]:
        """Which items these queries must not find: themselves, and their group's."""
        found: Bool[np.ndarray, "b m"] = names[rows, None] == own[None, :]
        if exclude_groups:
            found |= (groups[rows, None] == of_group[None, :]) & ~unknown[rows, None]
        return found

    found = _search(queries.vectors, gallery.vectors[by_id], k, forbidden, cells)
    return np.where(found >= 0, by_id[found], -1).astype(np.int64)


def class_votes(
    rows: Int64[np.ndarray, "q k"], labels: Int64[np.ndarray, " m"], n_classes: int
) -> Float32[np.ndarray, "q c"]:
    """Share of each class among the neighbours of each query (rows of -1 do not vote); 0 everywhere without any.

    `argmax` of it settles equal votes for the lowest class number.
    """
    votes = np.zeros((len(rows), n_classes), dtype=np.float32)
    query, place = np.nonzero(rows >= 0)
    np.add.at(votes, (query, labels[rows[query, place]]), 1)
    shares: Float32[np.ndarray, "q c"] = votes / np.maximum(votes.sum(axis=1, keepdims=True), 1)
    return shares


def knn_probabilities(
    train: Features, vectors: Float[np.ndarray, "n d"], n_classes: int, k: int = 20
) -> Float32[np.ndarray, "n c"]:
    """Share of each class among the k labelled training tiles nearest by cosine, each with one vote (UNI: k = 20).

    With fewer than k labelled tiles all of them vote.

    Raises:
        DataError: No training tile has a label.
    """
    train = train.labelled()
    _need_labels(train)
    rows = _search(vectors, train.vectors, min(k, len(train)))
    return class_votes(rows, train.labels, n_classes)


@dataclass(frozen=True)
class SimpleShot:
    """Nearest class mean after centring and L2 normalisation (CL2N of arXiv 1911.04623); `simple_shot` makes one.

    Attributes:
        mean: Subtracted from every vector.
        prototypes: Mean of each class's centred unit vectors; NaN for a class without a training tile.
    """

    mean: Float64[np.ndarray, " d"]
    prototypes: Float64[np.ndarray, "c d"]

    def probabilities(self, vectors: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n c"]:
        """Soft-max of minus the squared distance to each class mean: it ranks classes, and is not calibrated.

        A class without a training tile has probability 0. With x' = (x - m) / |x - m| the squared distance to p is
        |x'|^2 - 2 x'p + |p|^2, so that the centred tiles are never stored.
        """
        known = np.isfinite(self.prototypes).all(axis=1)
        prototypes = self.prototypes[known]
        rows = vectors.astype(np.float64, copy=False)
        inner = rows @ np.concatenate([self.mean[None], prototypes]).T
        of_mean = np.concatenate([self.mean[None], prototypes]) @ self.mean
        squares = np.einsum("nd,nd->n", rows, rows) - 2 * inner[:, 0] + of_mean[0]
        lengths = np.sqrt(np.maximum(squares, _SHORTEST**2))[:, None]
        logits = np.full((len(rows), len(known)), -np.inf)
        # |x'|^2 is the same for all classes and falls out of the soft-max.
        logits[:, known] = 2 * (inner[:, 1:] - of_mean[1:]) / lengths - (prototypes**2).sum(axis=1)
        return softmax(logits)


def simple_shot(train: Features, n_classes: int) -> SimpleShot:
    """Class means of the labelled training tiles, centred by the mean of these very tiles, then L2-normalised.

    Raises:
        DataError: No training tile has a label.
    """
    train = train.labelled()
    _need_labels(train)
    mean = train.vectors.mean(axis=0, dtype=np.float64)
    rows = _unit(train.vectors - mean)
    prototypes = np.full((n_classes, rows.shape[1]), np.nan)
    for c in np.unique(train.labels).tolist():
        prototypes[c] = rows[train.labels == c].mean(axis=0)
    return SimpleShot(mean, prototypes)


def _search(
    vectors: Float[np.ndarray, "q d"],
    items: Float[np.ndarray, "m d"],
    k: int,
    forbidden: Callable[[slice], Bool[np.ndarray, "b m"]] | None = None,
    cells: int = _CELLS,
) -> Int64[np.ndarray, "q k"]:
    """The k nearest items by cosine, equal ones in the items' order; -1 where fewer may be found."""
    wanted = _unit(items).astype(np.float32).T
    found = np.full((len(vectors), k), -1, dtype=np.int64)
    block = max(1, cells // max(1, len(items)))
    for start in range(0, len(vectors), block):
        rows = slice(start, start + block)
        scores = (_unit(vectors[rows]).astype(np.float32) @ wanted).round(_DECIMALS)
        if forbidden is not None:
            scores[forbidden(rows)] = -np.inf
        for row, of_query in enumerate(scores, start):
            best = _best(of_query, k)
            found[row, : len(best)] = best
    return found


def _codes(
    first: Shaped[np.ndarray, " q"], second: Shaped[np.ndarray, " m"]
) -> tuple[Int64[np.ndarray, " q"], Int64[np.ndarray, " m"]]:
    """Numbers in place of names, equal ones for equal names: they compare faster."""
    numbers = np.unique(np.concatenate([first, second]), return_inverse=True)[1].astype(np.int64)
    return numbers[: len(first)], numbers[len(first) :]


def _best(scores: Float32[np.ndarray, " m"], k: int) -> Int64[np.ndarray, " best"]:
    """Places of the k highest finite scores, highest first, equal ones in their order."""
    k = min(k, int(np.isfinite(scores).sum()))
    if not k:
        return np.empty(0, dtype=np.int64)
    edge = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero(scores >= edge)
    order = np.argsort(-scores[candidates], kind="stable")[:k]
    return np.asarray(candidates[order], dtype=np.int64)


def _need_labels(train: Features) -> None:
    if not len(train):
        raise DataError(explain("no training tile has a label", where="tiles.labels", fix="label some tiles"))
