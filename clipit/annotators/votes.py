"""Labels that annotators gave to items (tiles or pixel patterns), one row per label."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

ANONYMOUS = "(any annotator)"
"""Name used for all annotators if only the number of votes per class is known."""


@dataclass(frozen=True, eq=False)
class Votes:
    """Labels from several annotators.

    Attributes:
        items: Ids of the items, each with at least one label.
        annotators: Names of the annotators; only `ANONYMOUS` if votes were counted without names.
        item: Index into `items` for each label.
        annotator: Index into `annotators` for each label.
        times: Number of votes for the label; 1 for a named annotator.
    """

    items: tuple[str, ...]
    annotators: tuple[str, ...]
    classes: tuple[str, ...]
    item: Int64[np.ndarray, " v"]
    annotator: Int64[np.ndarray, " v"]
    label: Int64[np.ndarray, " v"]
    times: Int64[np.ndarray, " v"]

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.items)

    @property
    def named(self) -> bool:
        """Whether the annotator of each label is known."""
        return self.annotators != (ANONYMOUS,)

    def counts(self) -> Int64[np.ndarray, "n c"]:
        """Count the labels of each class per item."""
        counts = np.zeros((len(self.items), len(self.classes)), dtype=np.int64)
        np.add.at(counts, (self.item, self.label), self.times)
        return counts

    def table(self) -> Int64[np.ndarray, "n a"]:
        """Return the label of each named annotator for each item; -1 for none."""
        table = np.full((len(self.items), len(self.annotators)), -1, dtype=np.int64)
        table[self.item, self.annotator] = self.label
        return table

    def items_per_annotator(self) -> Int64[np.ndarray, " a"]:
        """Count the items that each annotator labelled."""
        return np.bincount(self.annotator, minlength=len(self.annotators)).astype(np.int64)

    def of_items(self, ids: Collection[str]) -> "Votes":
        """Select the labels of these items, and drop annotators who labelled none of them."""
        selected = set(ids)
        inside = np.asarray([name in selected for name in self.items], dtype=np.bool_)
        return self._select(inside[self.item]).of_active_annotators() if self.items else self

    def of_active_annotators(self) -> "Votes":
        """Drop annotators without a label; if nobody has labels, all are kept."""
        active = {self.annotators[number] for number in set(self.annotator.tolist())}
        return self.of_annotators(active) if active else self

    def of_annotators(self, names: Collection[str]) -> "Votes":
        """Select the labels of these annotators, and drop the other annotators."""
        chosen = set(names)
        inside = np.asarray([name in chosen for name in self.annotators], dtype=np.bool_)
        selected = self._select(inside[self.annotator])
        new_index = np.cumsum(inside) - 1
        annotators = tuple(name for name in self.annotators if name in chosen)
        return Votes(
            selected.items,
            annotators,
            self.classes,
            selected.item,
            new_index[selected.annotator].astype(np.int64),
            selected.label,
            selected.times,
        )

    def _select(self, kept: Bool[np.ndarray, " v"]) -> "Votes":
        """Select labels by a mask, and drop items left without labels."""
        rows, item = np.unique(self.item[kept], return_inverse=True)
        return Votes(
            tuple(self.items[row] for row in rows.tolist()),
            self.annotators,
            self.classes,
            item.astype(np.int64),
            self.annotator[kept],
            self.label[kept],
            self.times[kept],
        )


@dataclass(frozen=True, eq=False)
class Majority:
    """Most frequent label of each item.

    Attributes:
        labels: Class of each item; -1 for an item without a label.
        tied: Whether several classes were equally frequent and the tie was broken by a hash.
    """

    labels: Int64[np.ndarray, " n"]
    tied: Bool[np.ndarray, " n"]


def majority(counts: Int64[np.ndarray, "n c"], ids: Sequence[str]) -> Majority:
    """Find the most frequent label of each item; ties are broken by a hash of the item's id.

    Args:
        counts: Number of labels of each class per item.
    """
    labels = np.full(len(counts), -1, dtype=np.int64)
    highest = counts.max(axis=1, initial=0)
    leading = (counts == highest[:, None]) & (highest[:, None] > 0)
    tied = leading.sum(axis=1) > 1
    labelled = leading.any(axis=1)
    labels[labelled] = leading[labelled].argmax(axis=1)
    for row in np.flatnonzero(tied).tolist():
        candidates = np.flatnonzero(leading[row])
        drawn = int.from_bytes(hashlib.blake2b(f"tie:{ids[row]}".encode(), digest_size=8).digest())
        labels[row] = candidates[drawn % len(candidates)]
    return Majority(labels, tied)
