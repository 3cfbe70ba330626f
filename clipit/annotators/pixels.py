"""Consensus of several annotators' masks, computed from the distinct patterns of pixel labels and their counts.

Dawid-Skene over pixels is STAPLE (Warfield, Zou and Wells, IEEE TMI 23(7), 2004) for several classes. Pixels with the
same labels have the same posterior, so EM needs only one row per pattern.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int16, Int64

from clipit.annotators.dawid_skene import DawidSkene, dawid_skene
from clipit.annotators.labelling import Consensus
from clipit.annotators.votes import Votes, majority
from clipit.errors import DataError, counted

_BITS = 62  # pattern numbers must fit into int64


@dataclass(frozen=True, eq=False)
class PixelConsensus:
    """Consensus for each label pattern.

    Attributes:
        votes: Labels of each pattern; the items are the pattern numbers, in ascending order.
        pixels: Number of pixels with each pattern.
        estimates: Dawid-Skene estimates; None if no pixel has labels from two annotators.
        probabilities: Class probabilities, one row per pattern; label fractions if `estimates` is None.
    """

    votes: Votes
    pixels: Float64[np.ndarray, " n"]
    estimates: DawidSkene | None
    probabilities: Float64[np.ndarray, "n c"]

    def posteriors(self, patterns: Int64[np.ndarray, "h w"]) -> Float64[np.ndarray, "h w c"]:
        """Look up the class probabilities of pixels by their pattern numbers; zeros for pixels without a label."""
        known = np.asarray([int(item) for item in self.votes.items], dtype=np.int64)
        index = np.searchsorted(known, patterns).clip(max=len(known) - 1)
        posteriors: Float64[np.ndarray, "h w c"] = self.probabilities[index]
        posteriors[known[index] != patterns] = 0.0
        return posteriors

    def overruled(self) -> list[tuple[int, str]]:
        """List patterns whose consensus differs from more than half of their labels, most pixels first.

        Returns:
            Number of pixels and description of each pattern, such as "gland by ann, ben; stroma by cleo (consensus)".
        """
        votes, labels = self.votes, self.probabilities.argmax(axis=1)
        table = votes.table()
        listed = []
        for row in Consensus(votes, self.estimates, labels, self.probabilities, "").overruled.tolist():
            by_class = [
                f"{name} by {', '.join(np.asarray(votes.annotators, dtype=object)[table[row] == code])}"
                f"{' (consensus)' if code == labels[row] else ''}"
                for code, name in enumerate(votes.classes)
                if (table[row] == code).any()
            ]
            listed.append((int(self.pixels[row]), "; ".join(by_class)))
        return sorted(listed, reverse=True)

    def ties(self) -> int:
        """Count the pixels for which several classes are equally probable, to six decimal places."""
        millionths = np.rint(self.probabilities * 1e6).astype(np.int64)
        return int(self.pixels[majority(millionths, self.votes.items).tied].sum())


class PixelPatterns:
    """Counts of label patterns over the pixels of many tiles."""

    def __init__(self, annotators: Sequence[str], classes: Sequence[str]) -> None:
        """Create an empty counter.

        Raises:
            DataError: There are too many annotators and classes to number all patterns in 62 bits.
        """
        self.annotators, self.classes = tuple(annotators), tuple(classes)
        self._base = len(classes) + 1
        if len(annotators) * np.log2(self._base) > _BITS:
            raise DataError(
                f"{counted(len(annotators), 'annotator')} and {len(classes)} classes give too many label patterns",
                where="--masks",
                fix="drop annotators, or merge those with few masks",
            )
        self._pixels: Counter[int] = Counter()

    def encode(self, labels: Int16[np.ndarray, "a h w"]) -> Int64[np.ndarray, "h w"]:
        """Compute the pattern number of each pixel; 0 for pixels without a label.

        Args:
            labels: Class index of each pixel, one map per annotator; -1 for unlabelled pixels.
        """
        patterns = np.zeros(labels.shape[1:], dtype=np.int64)
        for number in reversed(range(len(labels))):
            patterns = patterns * self._base + (labels[number] + 1)
        return patterns

    def add(self, patterns: Int64[np.ndarray, "h w"]) -> None:
        """Count the patterns of a tile."""
        numbers, counts = np.unique(patterns, return_counts=True)
        self._pixels.update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))

    def consensus(self) -> PixelConsensus:
        """Estimate the consensus of every pattern; annotators who labelled no pixel are dropped.

        Raises:
            DataError: No pixel has a label.
        """
        numbers = np.asarray(sorted(set(self._pixels) - {0}), dtype=np.int64)
        digits = numbers[:, None] // self._base ** np.arange(len(self.annotators), dtype=np.int64) % self._base
        item, annotator = np.nonzero(digits)
        if not len(item):
            raise DataError("no pixel has a label", where="--masks", fix="correct the masks or segmentation.ignore")
        votes = Votes(
            tuple(str(number) for number in numbers.tolist()),
            self.annotators,
            self.classes,
            item.astype(np.int64),
            annotator.astype(np.int64),
            digits[item, annotator] - 1,
            np.ones(len(item), dtype=np.int64),
        )
        pixels = np.asarray([self._pixels[number] for number in numbers.tolist()], dtype=np.float64)
        votes = votes.of_annotators([self.annotators[number] for number in set(annotator.tolist())])
        counts = votes.counts()
        if counts.sum(axis=1).max() < 2:
            return PixelConsensus(votes, pixels, None, counts / counts.sum(axis=1, keepdims=True))
        estimates = dawid_skene(votes, pixels)
        return PixelConsensus(votes, pixels, estimates, estimates.posteriors)


def annotator_dice(consensus: PixelConsensus) -> dict[str, dict[str, float | None]]:
    """Compute the Dice score of each annotator and class against the consensus of the other annotators.

    Formula: 2 |A and B| / (|A| + |B|) over all pixels labelled by the annotator and by at least one other.

    Returns:
        Dice by annotator and class; None where neither the annotator nor the consensus has a pixel of the class.
    """
    votes, table = consensus.votes, consensus.votes.table()
    row_of = {item: row for row, item in enumerate(votes.items)}
    scores: dict[str, dict[str, float | None]] = {}
    for number, name in enumerate(votes.annotators):
        others = votes.of_annotators([other for other in votes.annotators if other != name])
        rows = np.asarray([row_of[item] for item in others.items], dtype=np.int64)
        weights = consensus.pixels[rows]
        counts = others.counts()
        single = not len(rows) or counts.sum(axis=1).max() < 2
        reference = (
            majority(counts, others.items).labels if single else dawid_skene(others, weights).posteriors.argmax(1)
        )
        labels_by_annotator = table[rows, number]
        shared = labels_by_annotator >= 0
        scores[name] = {}
        for code, label in enumerate(votes.classes):
            a, b = (labels_by_annotator == code) & shared, (reference == code) & shared
            total = float(weights[a].sum() + weights[b].sum())
            scores[name][label] = 2 * float(weights[a & b].sum()) / total if total else None
    return scores
