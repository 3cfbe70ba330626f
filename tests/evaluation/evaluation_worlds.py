"""Simulated predictions and features."""

import numpy as np

from clipit.evaluation.features import Features
from clipit.evaluation.predictions import Predictions, softmax


def predictions_of(
    n: int,
    n_classes: int,
    *,
    seed: int,
    skill: float = 1.0,
    groups: int = 0,
    split: str = "test",
    shift_labels: bool = False,
) -> Predictions:
    """Predictions of n tiles in a seed-dependent order; labels depend only on the tile ids."""
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(n)
    labels = ((numbers + shift_labels) % n_classes).astype(np.int64)
    logits = rng.normal(size=(n, n_classes)) + skill * np.eye(n_classes)[labels]
    return Predictions(
        ids=np.array([f"t{i:04d}" for i in numbers]),
        splits=np.full(n, split),
        labels=labels,
        groups=np.array([f"g{i % groups}" if groups else "" for i in numbers]),
        classes=tuple(f"c{i}" for i in range(n_classes)),
        probabilities=softmax(logits),
    )


def features_of(
    n: int, n_classes: int, dim: int = 12, *, seed: int = 0, spread: float = 1.0, groups: int = 0, prefix: str = "t"
) -> Features:
    """Features from Gaussians around class centres that are the same for all seeds."""
    centres = np.random.default_rng(99).normal(size=(n_classes, dim))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n).astype(np.int64)
    labels[:n_classes] = np.arange(n_classes)
    vectors = (centres[labels] + spread * rng.normal(size=(n, dim)) + 3.0).astype(np.float32)
    names = np.array([f"{prefix}{i:04d}" for i in rng.permutation(n)])
    group_names = np.array([f"g{i}" if groups else "" for i in rng.integers(0, max(groups, 1), n)])
    return Features(names, vectors, labels, group_names)
