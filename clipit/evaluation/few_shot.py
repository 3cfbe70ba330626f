"""Few-shot episodes: SimpleShot from k labelled training tiles per class, scored on all test tiles."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from clipit.errors import counted
from clipit.evaluation.features import Features, class_counts
from clipit.evaluation.intervals import Interval, t_interval
from clipit.evaluation.metrics import compute_metrics
from clipit.evaluation.neighbours import simple_shot


@dataclass(frozen=True)
class FewShot:
    """Scores of few-shot episodes.

    Attributes:
        shots: Number of training tiles per class.
        mean: Mean over the episodes; None if undefined (see `reason`).
        interval: 95% t-interval of the mean. It narrows with more episodes and does not cover the sampling error of
            the test tiles, which are the same in all episodes.
        spread: 2.5% and 97.5% quantiles of the scores of individual episodes.
        reason: Reason why the mean is undefined; "" otherwise.
    """

    shots: int
    scores: tuple[float, ...] = ()
    mean: float | None = None
    interval: Interval | None = None
    spread: tuple[float, float] | None = None
    reason: str = ""


def few_shot(
    train: Features,
    test: Features,
    n_classes: int,
    shots: int,
    episodes: int = 1000,
    seed: int = 0,
    metric: str = "balanced_accuracy",
) -> FewShot:
    """Compute the mean score of SimpleShot classifiers, each fitted on `shots` labelled training tiles per class.

    The tiles of an episode depend on (seed, shots, episode) and on the set of ids, not on their order. Features are
    centred on the mean of the episode's own tiles. No hyperparameter is selected, so no validation tiles are needed.

    Args:
        train: Training features; episodes are drawn from the labelled ones.
        test: Test features; the labelled ones are scored.
        n_classes: Number of classes; every class needs at least `shots` labelled training tiles.
        shots: Number of training tiles per class.
        metric: One of `metrics.METRICS`.
    """
    train, test = train.labelled(), test.labelled()
    short = np.flatnonzero(class_counts(train, n_classes) < shots).tolist()
    if short:
        numbers = ", ".join(map(str, short))
        return FewShot(shots, reason=f"fewer than {counted(shots, 'labelled training tile')} of class {numbers}")
    if not len(test):
        return FewShot(shots, reason="no labelled test tile")
    vectors = test.vectors.astype(np.float64)
    scores = []
    for rows in _draw_episodes(train.labels, n_classes, shots, episodes, seed):
        probabilities = simple_shot(train.take(rows), n_classes).probabilities(vectors)
        score = compute_metrics(test.labels, probabilities)[metric]
        if score is None:
            return FewShot(shots, reason=f"{metric} is undefined for these test tiles")
        scores.append(score)
    low, high = np.quantile(scores, (0.025, 0.975))
    return FewShot(shots, tuple(scores), float(np.mean(scores)), t_interval(scores), (float(low), float(high)))


def _draw_episodes(
    labels: Int64[np.ndarray, " n"], n_classes: int, shots: int, episodes: int, seed: int
) -> Iterator[Int64[np.ndarray, " k"]]:
    """Yield the rows of each episode, class by class."""
    members = [np.flatnonzero(labels == c) for c in range(n_classes)]
    for episode in range(episodes):
        generator = np.random.default_rng([seed, shots, episode])
        yield np.concatenate([generator.choice(rows, shots, replace=False) for rows in members]).astype(np.int64)
