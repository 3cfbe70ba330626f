"""Score retrieval by cosine similarity: Recall@k of true pairs, class-match precision@k and majority vote.

Recall@k, called p@k in PLIP's tables, is the mean over queries of the fraction of their true matches that are among the
k nearest items. The fold enrichment of a score is the score divided by the expected score of k items drawn at random
from the same gallery.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from clipit.errors import DataError, counted, shortlist
from clipit.evaluation.features import Features, class_counts
from clipit.evaluation.neighbours import class_votes, nearest_neighbours


@dataclass(frozen=True)
class RetrievalScore:
    """A retrieval score.

    Attributes:
        name: Name of the measure: `recall`, `precision` or `vote`.
        value: Mean over the queries; None if undefined (see `reason`).
        random: Expected score of items drawn at random; None if unknown.
        queries: Number of scored queries.
        gallery: Number of items searched.
    """

    name: str
    k: int
    value: float | None
    random: float | None
    queries: int
    gallery: int
    reason: str = ""

    @property
    def enrichment(self) -> float | None:
        """Fold enrichment: value divided by the expected value of random retrieval; None if either is undefined."""
        return None if self.value is None or not self.random else self.value / self.random


def recall_at(
    queries: Features, gallery: Features, pairs: Iterable[tuple[str, str]], at: Sequence[int]
) -> list[RetrievalScore]:
    """Compute Recall@k: mean over queries of the fraction of their true matches among the k nearest items.

    With one match per query, this is the fraction of queries whose match is retrieved. Queries without a match are
    dropped.

    Args:
        gallery: Features of the other modality; their ids must differ from those of the queries.
        pairs: True pairs as (query id, gallery id).
        at: Values of k.

    Raises:
        DataError: A pair names an unknown id, or queries and gallery share ids.
    """
    shared = np.intersect1d(queries.ids, gallery.ids)
    if len(shared):
        raise DataError(
            f"queries and gallery share ids: {shortlist(shared.tolist())}", fix="rename the ids of one of them"
        )
    row_of = {str(name): row for row, name in enumerate(gallery.ids)}
    query_of = {str(name): row for row, name in enumerate(queries.ids)}
    partners: dict[int, set[int]] = {}
    unknown = []
    for query_id, item_id in pairs:
        if query_id not in query_of or item_id not in row_of:
            unknown.append(f"({query_id}, {item_id})")
            continue
        partners.setdefault(query_of[query_id], set()).add(row_of[item_id])
    if unknown:
        raise DataError(
            f"{counted(len(unknown), 'pair names', 'pairs name')} unknown ids: {shortlist(unknown)}",
            fix="correct the ids",
        )
    if not partners:
        return [RetrievalScore("recall", k, None, None, 0, len(gallery), "no true pairs") for k in at]
    order = sorted(partners)
    rows = nearest_neighbours(queries.take(np.asarray(order, dtype=np.int64)), gallery, min(max(at), len(gallery)))
    hits = np.zeros(rows.shape)
    for row_number, query in enumerate(order):
        hits[row_number] = [row in partners[query] for row in rows[row_number].tolist()]
    truths = np.array([len(partners[query]) for query in order])
    scores = []
    for k in at:
        value = float((hits[:, :k].sum(axis=1) / truths).mean())
        scores.append(RetrievalScore("recall", k, value, min(k, len(gallery)) / len(gallery), len(order), len(gallery)))
    return scores


def class_match(
    queries: Features,
    gallery: Features,
    n_classes: int,
    at: Sequence[int] = (),
    votes_at: Sequence[int] = (),
    *,
    exclude_groups: bool = False,
) -> list[RetrievalScore]:
    """Compute class-match precision@k and majority vote@k for labelled queries and a labelled gallery.

    precision@k: mean over queries of the fraction of the k nearest items (or of all permitted items, if fewer) that
    have the query's class. vote@k: fraction of queries whose class is the most frequent among the k nearest items; ties
    go to the lowest class index. A query never retrieves its own id, so passing the queries as the gallery gives a
    leave-one-out evaluation.

    Args:
        queries: Features of tiles, class prompts or texts with a known class.
        at: Values of k for precision.
        votes_at: Values of k for the vote.
        exclude_groups: Whether to exclude items of the query's group, if it is known.
    """
    queries, gallery = queries.labelled(), gallery.labelled()
    measures = [("precision", k) for k in at] + [("vote", k) for k in votes_at]
    widest = min(max((k for _, k in measures), default=0), len(gallery))
    rows = nearest_neighbours(queries, gallery, widest, exclude_groups=exclude_groups)
    has_items = (rows >= 0).any(axis=1)
    if not has_items.any():
        reason = "no labelled queries" if not len(queries) else "every gallery item is excluded"
        return [RetrievalScore(name, k, None, None, 0, len(gallery), reason) for name, k in measures]
    chance = float(_random_precision(queries, gallery, n_classes, exclude_groups)[has_items].mean())
    rows, truth = rows[has_items], queries.labels[has_items]
    matches = (gallery.labels[rows] == truth[:, None]) & (rows >= 0)
    scores = []
    for name, k in measures:
        if name == "precision":
            value = float((matches[:, :k].sum(axis=1) / (rows[:, :k] >= 0).sum(axis=1)).mean())
        else:
            value = float((class_votes(rows[:, :k], gallery.labels, n_classes).argmax(axis=1) == truth).mean())
        random = chance if name == "precision" else None
        scores.append(RetrievalScore(name, k, value, random, len(truth), len(gallery)))
    return scores


def _random_precision(
    queries: Features, gallery: Features, n_classes: int, exclude_groups: bool
) -> Float64[np.ndarray, " q"]:
    """Compute the fraction of each query's class among its permitted items; NaN if there are none."""
    counts = np.tile(class_counts(gallery, n_classes), (len(queries), 1))
    row_of = {str(name): row for row, name in enumerate(gallery.ids)}
    group_counts = _counts_by_group(gallery, n_classes) if exclude_groups else {}
    for row_number, (name, group) in enumerate(zip(queries.ids.tolist(), queries.groups.tolist(), strict=True)):
        excluded = bool(group) and group in group_counts
        if excluded:
            counts[row_number] -= group_counts[group]
        row = row_of.get(name)
        if row is not None and not (excluded and gallery.groups[row] == group):
            counts[row_number, gallery.labels[row]] -= 1
    permitted = counts.sum(axis=1)
    share = np.full(len(queries), np.nan)
    np.divide(counts[np.arange(len(queries)), queries.labels], permitted, out=share, where=permitted > 0)
    return share


def _counts_by_group(gallery: Features, n_classes: int) -> dict[str, Int64[np.ndarray, " c"]]:
    names, number = np.unique(gallery.groups, return_inverse=True)
    cells = np.bincount(number * n_classes + gallery.labels, minlength=len(names) * n_classes)
    return {str(name): row.astype(np.int64) for name, row in zip(names, cells.reshape(len(names), -1), strict=True)}
