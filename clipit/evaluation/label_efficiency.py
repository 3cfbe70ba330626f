"""Label-efficiency curves: a score over the share of training labels that a probe may see."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from clipit.evaluation.features import Features, Probe, class_counts
from clipit.evaluation.metrics import compute_metrics
from clipit.tiles.hashing import shuffled
from clipit.tiles.labels import proportional


@dataclass(frozen=True)
class LabelPoint:
    """One probe, fitted on one share of the labels drawn by one seed.

    Attributes:
        share: Of the training labels.
        seed: Drew them.
        labels: Training labels seen.
        validation_labels: Validation labels seen (no more in all than `labels`).
        score: On the test tiles; None where not defined, for `reason`.
    """

    share: float
    seed: int
    labels: int
    validation_labels: int
    score: float | None
    reason: str = ""


def label_subset(
    train: Features, validation: Features, n_classes: int, share: float, seed: int
) -> tuple[Features, Features] | str:
    """The labelled tiles of a share, or in words why the share is not defined.

    The rule is that of `tiles.labels.hide_labels` with kind `fraction`, so a training run with the same share and seed
    sees the same tiles: of each class the rounded share of its labelled training tiles, first in an order drawn from
    (seed, id), so that a larger share contains a smaller one; of validation no more labels in all, in the proportions
    of its classes. One difference: where a class would get no tile the share is not defined, whereas training takes one
    tile of it.
    """
    train, validation = train.labelled(), validation.labelled()
    counts = class_counts(train, n_classes)
    quota = np.rint(counts * share).astype(np.int64)
    empty = np.flatnonzero(quota == 0).tolist()
    if empty:
        return f"{share:g} of the labels leaves none of class {', '.join(map(str, empty))}"
    kept = proportional(class_counts(validation, n_classes), int(quota.sum()))
    return _first(train, quota.tolist(), seed), _first(validation, kept.tolist(), seed)


def label_efficiency(
    train: Features,
    validation: Features,
    test: Features,
    n_classes: int,
    probe: Probe,
    shares: Sequence[float],
    seeds: Sequence[int],
    metric: str = "balanced_accuracy",
) -> list[LabelPoint]:
    """The probe's test score for every share and seed; test labels are only scored against.

    A probe is a function of what it is given, so where two seeds draw the same tiles (all of them, at a share of 1) it
    is fitted once.
    """
    test = test.labelled()
    points = []
    known: dict[tuple[str, ...], tuple[float | None, str]] = {}
    for share in shares:
        for seed in seeds:
            drawn = label_subset(train, validation, n_classes, share, seed)
            if isinstance(drawn, str):
                points.append(LabelPoint(share, seed, 0, 0, None, drawn))
                continue
            seen, chosen_on = drawn
            tiles = (*seen.ids.tolist(), *chosen_on.ids.tolist())
            if tiles not in known:
                known[tiles] = _score(test, probe(seen, chosen_on, test.vectors, n_classes), metric)
            score, reason = known[tiles]
            points.append(LabelPoint(share, seed, len(seen), len(chosen_on), score, reason))
    return points


def _score(test: Features, probabilities: Float[np.ndarray, "n c"], metric: str) -> tuple[float | None, str]:
    if not len(test):
        return None, "no labelled test tile"
    score = compute_metrics(test.labels, probabilities)[metric]
    return score, "" if score is not None else f"{metric} is not defined for these test tiles"


def _first(features: Features, quota: Sequence[int], seed: int) -> Features:
    """So many labelled rows of each class, by the order that `hide_labels` draws."""
    rows = []
    for code, kept in enumerate(quota):
        members = np.flatnonzero(features.labels == code)
        rows.append(members[shuffled(features.ids[members], seed, "labels")[:kept]])
    return features.take(np.sort(np.concatenate(rows)))
