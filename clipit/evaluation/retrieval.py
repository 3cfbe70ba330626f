"""Retrieval by cosine: Recall@k of true pairs, class-match precision@k, majority votes, and the fold over random.

Recall@k is what PLIP's tables call p@k: the share of queries whose own partner is among the k nearest. Fold over random
is a score divided by what k items drawn blindly from the same gallery would score on average.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from clipit.errors import DataError, explain, shortlist
from clipit.evaluation.features import Features, class_counts
from clipit.evaluation.neighbours import class_votes, nearest_rows


@dataclass(frozen=True)
class RetrievalScore:
    """One cell of a retrieval table.

    Attributes:
        name: recall, precision or vote.
        k: Items looked at.
        value: Mean over the queries; None where not defined, for `reason`.
        random: Its expectation for items drawn blindly.
        queries: How many count.
        gallery: Items searched.
        reason: Why there is no value.
    """

    name: str
    k: int
    value: float | None
    random: float | None
    queries: int
    gallery: int
    reason: str = ""

    @property
    def fold(self) -> float | None:
        """Value over random."""
        return None if self.value is None or not self.random else self.value / self.random


def recall_at(
    queries: Features, gallery: Features, pairs: Iterable[tuple[str, str]], at: Sequence[int]
) -> list[RetrievalScore]:
    """Recall@k: mean over queries of the share of their true partners that are among the k nearest.

    With one partner each this is the share of queries whose partner is found. Queries without a partner are left out.

    Args:
        queries: Tiles or texts.
        gallery: The other kind (ids of the two kinds must not be shared).
        pairs: (query id, gallery id), true pairs.
        at: The values of k.

    Raises:
        DataError: A pair names an id that is in neither, or the two kinds share ids.
    """
    shared = np.intersect1d(queries.ids, gallery.ids)
    if len(shared):
        raise DataError(explain(f"queries and gallery share ids: {shortlist(shared.tolist())}", fix="rename one kind"))
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
        raise DataError(explain(f"{len(unknown)} pairs name unknown ids: {shortlist(unknown)}", fix="correct the ids"))
    if not partners:
        return [RetrievalScore("recall", k, None, None, 0, len(gallery), "no true pair") for k in at]
    order = sorted(partners)
    rows = nearest_rows(queries.take(np.asarray(order, dtype=np.int64)), gallery, min(max(at), len(gallery)))
    hits = np.zeros(rows.shape)
    for place, query in enumerate(order):
        hits[place] = [row in partners[query] for row in rows[place].tolist()]
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
    """Class-match precision@k and majority vote@k, over labelled queries and a labelled gallery.

    precision@k: mean over queries of the share of the k nearest that are of the query's class (of those that may be
    found, where these are fewer than k). vote@k: share of queries whose class has the most of the k nearest; equal
    votes go to the lowest class number. A query never finds its own id, so a gallery of the queries themselves is
    leave-one-out.

    Args:
        queries: Tiles, class prompts or texts with a known class.
        gallery: What is searched.
        n_classes: Number of classes.
        at: The values of k for precision.
        votes_at: The values of k for the vote.
        exclude_groups: Items of the query's own group (where known) are not looked at.
    """
    queries, gallery = queries.labelled(), gallery.labelled()
    wanted = [("precision", k) for k in at] + [("vote", k) for k in votes_at]
    widest = min(max((k for _, k in wanted), default=0), len(gallery))
    rows = nearest_rows(queries, gallery, widest, exclude_groups=exclude_groups)
    some = (rows >= 0).any(axis=1)
    if not some.any():
        reason = "no labelled query" if not len(queries) else "nothing may be found in the gallery"
        return [RetrievalScore(name, k, None, None, 0, len(gallery), reason) for name, k in wanted]
    chance = float(_blind_share(queries, gallery, n_classes, exclude_groups)[some].mean())
    rows, truth = rows[some], queries.labels[some]
    matches = (gallery.labels[rows] == truth[:, None]) & (rows >= 0)
    scores = []
    for name, k in wanted:
        if name == "precision":
            value = float((matches[:, :k].sum(axis=1) / (rows[:, :k] >= 0).sum(axis=1)).mean())
        else:
            value = float((class_votes(rows[:, :k], gallery.labels, n_classes).argmax(axis=1) == truth).mean())
        random = chance if name == "precision" else None
        scores.append(RetrievalScore(name, k, value, random, len(truth), len(gallery)))
    return scores


def _blind_share(
    queries: Features, gallery: Features, n_classes: int, exclude_groups: bool
) -> Float64[np.ndarray, " q"]:
    """Share of each query's class among the items that it may find; NaN where there are none."""
    counts = np.tile(class_counts(gallery, n_classes), (len(queries), 1))
    own = {str(name): row for row, name in enumerate(gallery.ids)}
    of_group = _counts_by_group(gallery, n_classes) if exclude_groups else {}
    for place, (name, group) in enumerate(zip(queries.ids.tolist(), queries.groups.tolist(), strict=True)):
        excluded = bool(group) and group in of_group
        if excluded:
            counts[place] -= of_group[group]
        row = own.get(name)
        if row is not None and not (excluded and gallery.groups[row] == group):
            counts[place, gallery.labels[row]] -= 1
    left = counts.sum(axis=1)
    share = np.full(len(queries), np.nan)
    np.divide(counts[np.arange(len(queries)), queries.labels], left, out=share, where=left > 0)
    return share


def _counts_by_group(gallery: Features, n_classes: int) -> dict[str, Int64[np.ndarray, " c"]]:
    names, number = np.unique(gallery.groups, return_inverse=True)
    cells = np.bincount(number * n_classes + gallery.labels, minlength=len(names) * n_classes)
    return {str(name): row.astype(np.int64) for name, row in zip(names, cells.reshape(len(names), -1), strict=True)}
