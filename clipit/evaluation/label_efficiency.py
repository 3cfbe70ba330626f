"""Label-efficiency curves: a probe's score against the fraction of training labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipit.evaluation.features import Features, Probe, class_counts
from clipit.evaluation.metrics import compute_metrics
from clipit.tiles.hidden_labels import proportional
from clipit.tiles.splits import shuffled


@dataclass(frozen=True)
class LabelPoint:
    """Score of a probe fitted on one fraction of the labels, drawn with one seed.

    Attributes:
        share: Fraction of the training labels.
        labels: Number of training labels used.
        validation_labels: Number of validation labels used (at most `labels`).
        score: Test score; None if undefined (see `reason`).
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
    """Draw the labelled tiles for a fraction of the labels, or return the reason why they cannot be drawn.

    Follows `tiles.hidden_labels.hide_labels` with kind `fraction`, so a training run with the same fraction and seed
    uses the same tiles. From each class, the rounded fraction of its labelled training tiles is drawn, in an order that
    depends on (seed, id) alone, so that a larger fraction contains the smaller ones. The validation split keeps at most
    as many labels in total as are drawn, in proportion to its class frequencies.

    There are two differences from training. A fraction that leaves a class without a tile has no score here, whereas
    training uses one tile of that class. Tiles labelled by several annotators are stratified by their training label.
    """
    train, validation = train.labelled(), validation.labelled()
    quota = np.rint(class_counts(train, n_classes) * share).astype(np.int64)
    empty = np.flatnonzero(quota == 0).tolist()
    if empty:
        return f"a share of {share:g} leaves no labels of class {', '.join(map(str, empty))}"
    kept = proportional(class_counts(validation, n_classes), int(quota.sum()))
    return _take_quota(train, quota.tolist(), seed), _take_quota(validation, kept.tolist(), seed)


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
    """Compute the test score of a probe for every share and seed; test labels are only used for scoring.

    If the same tiles are drawn for several seeds, as at a fraction of 1, the probe is fitted only once.

    Args:
        train: Features and labels of the training tiles.
        validation: Features and labels of the validation tiles, which select the probe's hyperparameters.
        test: Features and labels of the test tiles.
        n_classes: Number of classes.
        probe: Function that fits a classifier on training tiles and returns class probabilities for test tiles.
        shares: Fractions of the training labels, in 0..1.
        seeds: Seeds for the draws.
        metric: One of `metrics.METRICS`.
    """
    test = test.labelled()
    points = []
    scores: dict[tuple[str, ...], tuple[float | None, str]] = {}
    for share in shares:
        for seed in seeds:
            subset = label_subset(train, validation, n_classes, share, seed)
            if isinstance(subset, str):
                points.append(LabelPoint(share, seed, 0, 0, None, subset))
                continue
            fit_tiles, selection_tiles = subset
            ids = (*fit_tiles.ids.tolist(), *selection_tiles.ids.tolist())
            if ids not in scores:
                scores[ids] = _score(test, fit_tiles, selection_tiles, n_classes, probe, metric)
            points.append(LabelPoint(share, seed, len(fit_tiles), len(selection_tiles), *scores[ids]))
    return points


def _score(
    test: Features, train: Features, validation: Features, n_classes: int, probe: Probe, metric: str
) -> tuple[float | None, str]:
    """Compute the test score; None with a reason if it is undefined."""
    probabilities = probe(train, validation, test.vectors, n_classes)
    if not len(test):
        return None, "no labelled test tile"
    score = compute_metrics(test.labels, probabilities)[metric]
    return score, "" if score is not None else f"{metric} is undefined for these test tiles"


def _take_quota(features: Features, quota: Sequence[int], seed: int) -> Features:
    """Select the given number of labelled rows per class, in the order in which `hide_labels` draws them."""
    rows = []
    for label, count in enumerate(quota):
        members = np.flatnonzero(features.labels == label)
        rows.append(members[shuffled(features.ids[members], seed, "labels")[:count]])
    return features.take(np.sort(np.concatenate(rows)))
