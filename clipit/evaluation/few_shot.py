"""Few-shot episodes: SimpleShot from k labelled training tiles per class, judged on all test tiles."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from clipit.evaluation.features import Features, class_counts
from clipit.evaluation.intervals import t_interval
from clipit.evaluation.metrics import compute_metrics
from clipit.evaluation.neighbours import simple_shot

_SPREAD = (0.025, 0.975)


@dataclass(frozen=True)
class FewShot:
    """Scores over episodes.

    Attributes:
        shots: Training tiles per class.
        scores: One per episode.
        mean: Over the episodes; None where not defined, for `reason`.
        interval: 95 % t-interval of that mean. It narrows with more episodes and leaves out the chance of the test
            tiles, which are the same in all of them.
        spread: 2.5 % and 97.5 % quantiles: what one draw of labels may give.
        reason: Why there is no score.
    """

    shots: int
    scores: tuple[float, ...]
    mean: float | None
    interval: tuple[float, float] | None
    spread: tuple[float, float] | None
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
    """Mean score of `episodes` SimpleShot classifiers, each from `shots` labelled training tiles per class.

    The tiles of an episode depend on (seed, shots, episode) and on which ids there are, not on their order. The mean
    that centres is that of the episode's own tiles. Nothing is chosen, so no validation tile is needed.

    Args:
        train: Drawn from where labelled.
        test: Judged where labelled.
        n_classes: All of them take part.
        shots: Tiles per class.
        episodes: Number of draws.
        seed: Of the draws.
        metric: One of `metrics.METRICS`.
    """
    train, test = train.labelled(), test.labelled()
    short = np.flatnonzero(class_counts(train, n_classes) < shots).tolist()
    if short:
        numbers = ", ".join(map(str, short))
        return FewShot(shots, (), None, None, None, f"fewer than {shots} labelled training tiles of class {numbers}")
    if not len(test):
        return FewShot(shots, (), None, None, None, "no labelled test tile")
    vectors = test.vectors.astype(np.float64)
    scores = []
    for rows in _episodes(train.labels, n_classes, shots, episodes, seed):
        probabilities = simple_shot(train.take(rows), n_classes).probabilities(vectors)
        score = compute_metrics(test.labels, probabilities)[metric]
        if score is None:
            return FewShot(shots, (), None, None, None, f"{metric} is not defined for these test tiles")
        scores.append(score)
    low, high = np.quantile(scores, _SPREAD)
    return FewShot(shots, tuple(scores), float(np.mean(scores)), t_interval(scores), (float(low), float(high)))


def _episodes(
    labels: Int64[np.ndarray, " n"], n_classes: int, shots: int, episodes: int, seed: int
) -> Iterator[Int64[np.ndarray, " k"]]:
    """Rows of each episode, class by class."""
    members = [np.flatnonzero(labels == c) for c in range(n_classes)]
    for episode in range(episodes):
        generator = np.random.default_rng([seed, shots, episode])
        drawn = [generator.choice(of_class, shots, replace=False) for of_class in members]
        yield np.concatenate(drawn).astype(np.int64)
