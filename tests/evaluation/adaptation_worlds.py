"""Simulated embeddings on which test-time adaptation helps or harms."""

from dataclasses import dataclass

import numpy as np

from clipit.evaluation.metrics import compute_metrics
from clipit.evaluation.zero_shot import zero_shot_probabilities


@dataclass(frozen=True)
class World:
    """Labelled embeddings with zero-shot probabilities as prior."""

    ids: np.ndarray
    labels: np.ndarray
    vectors: np.ndarray
    prior: np.ndarray

    def score(self, probabilities: np.ndarray) -> float:
        """Balanced accuracy of class probabilities."""
        return float(compute_metrics(self.labels, probabilities)["balanced_accuracy"] or 0.0)


def clear_world(texts_noise: float, seed: int = 0) -> World:
    """Three well-separated classes with text embeddings near their centres, where adaptation should help."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), 60)
    centres = rng.normal(size=(3, 64)) / 8
    vectors = centres[labels] + 0.9 * rng.normal(size=(180, 64)) / 8
    prior = zero_shot_probabilities(vectors, centres + texts_noise * rng.normal(size=(3, 64)) / 8, 10.0)
    return World(np.array([f"{i:03d}" for i in rng.permutation(180)]), labels.astype(np.int64), vectors, prior)


def misleading_world(seed: int = 0) -> World:
    """Weakly separated classes under a strong unrelated grouping, where adaptation should harm."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), 60)
    centres = rng.normal(size=(3, 64)) / 8
    vectors = 0.35 * centres[labels] + 0.5 * rng.normal(size=(180, 64)) / 8
    vectors = vectors + 3 * rng.normal(size=(3, 64))[rng.integers(0, 3, 180)] / 8
    prior = zero_shot_probabilities(vectors, centres + 0.2 * rng.normal(size=(3, 64)) / 8, 10.0)
    return World(np.array([f"{i:03d}" for i in rng.permutation(180)]), labels.astype(np.int64), vectors, prior)


@dataclass(frozen=True)
class Origin:
    """Gaussian classes of one source domain, with a linear classifier."""

    means: np.ndarray
    weight: np.ndarray
    training: np.ndarray

    def probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """Class probabilities of the classifier."""
        powers = np.exp(vectors @ self.weight.T - (self.means**2).sum(axis=1) / 2)
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def draw(self, rng: np.random.Generator, n: int, shares: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Sample labels and vectors of new tiles, with class frequencies `shares` (uniform by default)."""
        labels = rng.choice(len(self.means), n, p=shares)
        return labels, self.means[labels] + rng.normal(size=(n, self.means.shape[1]))


def make_origin(rng: np.random.Generator, n_classes: int = 4, dim: int = 16, training: int = 600) -> Origin:
    """Origin with overlapping, equally frequent classes."""
    means = 2.2 * rng.normal(size=(n_classes, dim)) / np.sqrt(dim / 4)
    empty = Origin(means, means, np.empty((0, dim)))
    return Origin(means, means, empty.draw(rng, training)[1])
