"""Agreement of report labels, including "both" and "none", with reference labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, Shaped

from clipit.evaluation.intervals import Interval, estimate
from clipit.evaluation.metrics import count_scores, divide

SCORES = {
    "accuracy": "accuracy (reports without a predicted class count as wrong)",
    "macro_f1": "macro F1",
    "coverage": "fraction assigned to a class",
    "covered_accuracy": "accuracy where a class is predicted",
}
"""Agreement scores, and their names on pages."""


@dataclass(frozen=True)
class Agreement:
    """Confusion table of reference classes and predictions, and its scores.

    Attributes:
        classes: Reference classes, the rows of the table.
        predictions: Predicted labels, the columns of the table: the classes, then "both" and "none" if they occur.
        counts: Number of reports per cell.
        scores: Value of each of `SCORES`; None where undefined.
        intervals: 95% bootstrap intervals over groups.
        note: Remark on the comparison; "" for none.
    """

    title: str
    classes: tuple[str, ...]
    predictions: tuple[str, ...]
    counts: Int64[np.ndarray, "c a"]
    groups: int
    scores: dict[str, float | None]
    intervals: dict[str, Interval]
    note: str = ""

    @property
    def most_frequent(self) -> float | None:
        """Fraction of the most frequent reference class; None without labels."""
        total = int(self.counts.sum())
        return float(self.counts.sum(axis=1).max()) / total if total else None

    def as_dict(self) -> dict[str, Any]:
        """Return the table and the scores as a JSON-serialisable dictionary."""
        bounds = {name: [interval.low, interval.high] for name, interval in self.intervals.items()}
        return {
            "title": self.title,
            "classes": list(self.classes),
            "predictions": list(self.predictions),
            "counts": self.counts.tolist(),
            "reports": int(self.counts.sum()),
            "groups": self.groups,
            "scores": {
                name: {"value": value, "low": bounds[name][0], "high": bounds[name][1]}
                for name, value in self.scores.items()
            },
            "most_frequent": self.most_frequent,
            "note": self.note,
        }


def measure_agreement(
    title: str,
    labels: Int64[np.ndarray, " n"],
    predictions: Sequence[str],
    classes: Sequence[str],
    groups: Shaped[np.ndarray, " n"],
    *,
    note: str = "",
    resamples: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Compare predictions with reference labels; a prediction that is not a class counts as wrong.

    Macro F1 is the mean over the classes that have labels; predictions that are not classes lower only the recall of
    the reference class.

    Args:
        labels: Reference class index of each report; reports labelled -1 are dropped.
        predictions: Label predicted for each report: a class, or another text.
        classes: Class names in the order of the class indices.
        groups: Group of each report, resampled as a whole; "" where unknown.
    """
    known = np.flatnonzero(labels >= 0)
    labels, groups = labels[known], groups[known]
    names = [predictions[row] for row in known.tolist()]
    columns = (*classes, *sorted(set(names) - {*classes}))
    predicted = np.array([columns.index(name) for name in names], dtype=np.int64)
    counts = np.zeros((len(classes), len(columns)), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)

    def statistics(weights: Float[np.ndarray, "n r"]) -> dict[str, Float[np.ndarray, " r"]]:
        return _scores(labels, predicted, len(classes), weights)

    estimates = estimate(statistics, groups, resamples, seed)
    return Agreement(
        title=title,
        classes=tuple(classes),
        predictions=columns,
        counts=counts,
        groups=len(set(groups.tolist()) - {""}) + int((groups == "").sum()),
        scores={name: each.value for name, each in estimates.items()},
        intervals={name: each.interval for name, each in estimates.items()},
        note=note,
    )


def _scores(
    labels: Int64[np.ndarray, " n"],
    predicted: Int64[np.ndarray, " n"],
    n_classes: int,
    weights: Float[np.ndarray, "n r"],
) -> dict[str, Float[np.ndarray, " r"]]:
    """Compute `SCORES` for each of r weightings; macro F1 is NaN in resamples that lack a class."""
    truth, one_hot = np.eye(n_classes)[labels], np.eye(max(n_classes, int(predicted.max(initial=0)) + 1))[predicted]
    one_hot = one_hot[:, :n_classes]
    true, counts, hits = weights.T @ truth, weights.T @ one_hot, weights.T @ (truth * one_hot)
    scores = count_scores(hits, true, counts)
    incomplete = ((true == 0) & (truth.sum(axis=0) > 0)).any(axis=1)
    covered = counts.sum(axis=1)
    return {
        "accuracy": scores["accuracy"],
        "macro_f1": np.where(incomplete, np.nan, scores["macro_f1"]),
        "coverage": divide(covered, weights.sum(axis=0)),
        "covered_accuracy": divide(hits.sum(axis=1), covered),
    }
