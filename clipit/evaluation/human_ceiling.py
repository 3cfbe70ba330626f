"""Human ceiling: agreement of each annotator with the consensus of the others on the scored tiles."""

from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import numpy as np
from jaxtyping import Int64

from clipit.annotators.labelling import Annotations, find_consensus
from clipit.annotators.votes import Votes
from clipit.errors import counted
from clipit.evaluation.metrics import compute_metrics
from clipit.tiles.tileset import TileSet

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "kappa")
"""Metrics that need predicted classes, but no probabilities."""
SOURCE_LABELS = "labels of the source"


@dataclass(frozen=True)
class AnnotatorScore:
    """Scores of an annotator, or of a randomly drawn one if the votes are anonymous.

    Attributes:
        tiles: Number of tiles with both a label from the annotator and a reference label.
        reference: Description of the reference labels.
        metrics: Value of each of `METRICS`; None where it is undefined.
    """

    annotator: str
    tiles: int
    reference: str
    metrics: dict[str, float | None]


def score_annotators(tiles: TileSet) -> list[AnnotatorScore]:
    """Score each annotator on test tiles as if they were a classifier.

    The reference is the consensus of the other test annotators (an annotator's own label would agree with itself). If
    the test labels come from the tile source instead, those labels are the reference. For anonymous votes, the
    score is the expected accuracy of one randomly drawn vote against the majority of the other votes on its tile; if k
    classes tie for the majority, a vote for one of them counts 1 / k.

    Args:
        tiles: Tiles of one split, or of one test set.
    """
    annotations = tiles.annotations
    if annotations is None:
        return []
    votes = annotations.votes.of_items(tiles.ids.tolist())
    if not len(votes):
        return []
    if not votes.named:
        return _score_anonymous(votes) if annotations.test_annotators else []
    return [score for name in votes.annotators if (score := _score(name, votes, annotations, tiles)) is not None]


def human_ceiling(tiles: TileSet) -> dict[str, Any] | None:
    """Summarise `score_annotators` for results.json; None without labels from several annotators.

    Returns:
        `annotators` (one record each), `mean` of each metric over annotators, `labels_per_tile` (mean number of
        labels on the labelled tiles), and `independent` (yes, no or unknown): whether test and training labels come
        from different annotators.
    """
    scores = score_annotators(tiles)
    if not scores or tiles.annotations is None:
        return None
    means = {}
    for metric in METRICS:
        values = [value for score in scores if (value := score.metrics[metric]) is not None]
        means[metric] = mean(values) if values else None
    votes = tiles.annotations.votes.of_items(tiles.ids.tolist())
    if votes.named and tiles.annotations.test_annotators:
        votes = votes.of_annotators(tiles.annotations.test_annotators)
    return {
        "annotators": [asdict(score) for score in scores],
        "mean": means,
        "labels_per_tile": float(votes.times.sum()) / len(votes),
        "independent": tiles.annotations.independent,
    }


def _score(name: str, votes: Votes, annotations: Annotations, tiles: TileSet) -> AnnotatorScore | None:
    """Score a named annotator; None without reference labels."""
    own_votes = votes.of_annotators([name])
    own_labels = dict(zip(own_votes.items, own_votes.table()[:, 0].tolist(), strict=True))
    others = [other for other in annotations.test_annotators if other != name]
    if others:
        # The reference is estimated on all tiles that the others labelled, not only on those of this annotator.
        consensus = find_consensus(votes.of_annotators(others))
        reference = dict(zip(consensus.votes.items, consensus.labels.tolist(), strict=True))
        reference_name = (
            f"consensus ({consensus.method}) of {counted(len(others), 'other')}"
            if len(others) > 1
            else f"{others[0]} alone"
        )
    elif not annotations.test_annotators:
        known = zip(tiles.ids.tolist(), tiles.truth.tolist(), strict=True)
        reference, reference_name = {tile: label for tile, label in known if label >= 0}, SOURCE_LABELS
    else:
        return None
    shared = [item for item in own_votes.items if item in reference]
    if not shared:
        return None
    predicted = np.asarray([own_labels[item] for item in shared], dtype=np.int64)
    targets = np.asarray([reference[item] for item in shared], dtype=np.int64)
    return AnnotatorScore(name, len(shared), reference_name, _metrics(targets, predicted, len(votes.classes)))


def _metrics(
    labels: Int64[np.ndarray, " n"], predicted: Int64[np.ndarray, " n"], n_classes: int
) -> dict[str, float | None]:
    computed = compute_metrics(labels, np.eye(n_classes, dtype=np.float32)[predicted])
    return {metric: computed[metric] for metric in METRICS}


def _score_anonymous(votes: Votes) -> list[AnnotatorScore]:
    """Compute the expected accuracy of one vote against the majority of the other votes on its tile."""
    counts = votes.counts()
    counts = counts[counts.sum(axis=1) >= 2]
    if not len(counts):
        return []
    agreement = np.zeros(len(counts))
    for code in range(counts.shape[1]):
        others = counts.copy()
        others[:, code] -= 1
        highest = others.max(axis=1)
        credit = (others[:, code] == highest) / (others == highest[:, None]).sum(axis=1)
        agreement += np.where(counts[:, code] > 0, counts[:, code] * credit, 0.0)
    value = float((agreement / counts.sum(axis=1)).mean())
    metrics: dict[str, float | None] = dict.fromkeys(METRICS) | {"accuracy": value}
    return [AnnotatorScore(votes.annotators[0], len(counts), "majority of the other votes", metrics)]
