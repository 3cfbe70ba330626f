"""Simulated sets of embeddings on which transduction helps in some and harms in others."""

from dataclasses import dataclass

import numpy as np

from clipit.evaluation.metrics import compute_metrics
from clipit.evaluation.zero_shot import zero_shot_probabilities


@dataclass(frozen=True)
class World:
    """Embeddings with labels and a zero-shot text prior."""

    ids: np.ndarray
    labels: np.ndarray
    vectors: np.ndarray
    prior: np.ndarray

    def score(self, probabilities: np.ndarray) -> float:
        """Balanced accuracy."""
        return float(compute_metrics(self.labels, probabilities)["balanced_accuracy"] or 0.0)


def any_world(rng: np.random.Generator) -> World:
    """Classes of any share and strength, groups of tiles that are no classes, and texts of any quality."""
    n_classes, dim, n = int(rng.integers(2, 10)), int(rng.choice([32, 128, 512])), int(rng.choice([200, 400]))
    share = rng.dirichlet(np.full(n_classes, rng.choice([0.5, 2, 50])))
    share = (share + 0.03) / (share + 0.03).sum()
    labels = rng.choice(n_classes, n, p=share)
    centres = rng.normal(size=(n_classes, dim)) / np.sqrt(dim)
    common = rng.normal(size=dim) / np.sqrt(dim) * rng.uniform(0, 3)
    noise = rng.uniform(0.3, 2.0)
    groups = int(rng.integers(2, 6))
    others = rng.normal(size=(groups, dim)) / np.sqrt(dim) * rng.choice([0, 1, 2])
    vectors = common + rng.choice([0.3, 1.0]) * centres[labels] + noise * rng.normal(size=(n, dim)) / np.sqrt(dim)
    vectors = vectors + others[rng.integers(0, groups, n)]
    quality = rng.uniform(0, 1)
    texts = quality * centres + (1 - quality) * rng.uniform(1, 4) * rng.normal(size=(n_classes, dim)) / np.sqrt(dim)
    prior = zero_shot_probabilities(vectors, texts, float(rng.choice([5, 20, 100])))
    return World(np.array([f"{i:05d}" for i in range(n)]), labels.astype(np.int64), vectors, prior)


def clear_world(texts_noise: float, seed: int = 0) -> World:
    """Three classes in clouds that hardly touch, and texts more or less near the right ones: it should help."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), 60)
    centres = rng.normal(size=(3, 64)) / 8
    vectors = centres[labels] + 0.9 * rng.normal(size=(180, 64)) / 8
    prior = zero_shot_probabilities(vectors, centres + texts_noise * rng.normal(size=(3, 64)) / 8, 10.0)
    return World(np.array([f"{i:03d}" for i in rng.permutation(180)]), labels.astype(np.int64), vectors, prior)


def misleading_world(seed: int = 0) -> World:
    """Weak classes under a strong grouping that has nothing to do with them: it should harm."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), 60)
    centres = rng.normal(size=(3, 64)) / 8
    vectors = 0.35 * centres[labels] + 0.5 * rng.normal(size=(180, 64)) / 8
    vectors = vectors + 3 * rng.normal(size=(3, 64))[rng.integers(0, 3, 180)] / 8
    prior = zero_shot_probabilities(vectors, centres + 0.2 * rng.normal(size=(3, 64)) / 8, 10.0)
    return World(np.array([f"{i:03d}" for i in rng.permutation(180)]), labels.astype(np.int64), vectors, prior)
