"""Soft labels: probabilities that stand for the label of a tile without one."""

import numpy as np
import torch
from jaxtyping import Float32

from clipit.config.run import SoftLabelsConfig
from clipit.errors import DataError, explain
from clipit.training.losses import prior_corrected, sharpen
from clipit.training.teaching import SoftLabels


def soft_labels(
    probabilities: Float32[np.ndarray, "n classes"],
    config: SoftLabelsConfig,
    training: Float32[np.ndarray, "m classes"] | None = None,
) -> SoftLabels:
    """Corrected for the prior, sharpened, and weighted by confidence, in this order, as the configuration says.

    The prior is the mean probability of each class over the training tiles (`training`; these tiles where not given): a
    class that the teacher prefers everywhere is held back. The weight is 1, or with `confidence` 1 - H(p) / log C.

    Raises:
        DataError: A probability is not finite.
    """
    if not np.isfinite(probabilities).all():
        raise DataError(
            explain("soft labels that are not finite", where="soft_labels.source", fix="use vlm.precision=fp32")
        )
    p = torch.from_numpy(probabilities.astype(np.float64))
    prior = p if training is None else torch.from_numpy(training.astype(np.float64))
    p = prior_corrected(p, prior.mean(dim=0), config.prior_correction)
    p = sharpen(p, config.temperature)
    weights = np.ones(len(probabilities), dtype=np.float32)
    if config.confidence:
        entropy = -(p * p.clamp_min(1e-12).log()).sum(dim=1)
        weights = (1 - entropy / np.log(probabilities.shape[1])).clamp(0, 1).numpy().astype(np.float32)
    return SoftLabels(p.numpy().astype(np.float32), weights)


def agreement(logits: Float32[np.ndarray, "n classes"], judged: Float32[np.ndarray, "n classes"]) -> float:
    """Share of tiles whose most probable class is that of the soft labels."""
    return float((logits.argmax(axis=1) == judged.argmax(axis=1)).mean())


def information(probabilities: Float32[np.ndarray, "n classes"]) -> float:
    """H(mean p) - mean H(p): large when each prediction is sure and all classes are used (Krause et al., NIPS 2010)."""
    mean = probabilities.mean(axis=0)
    return _entropy(mean[None])[0] - float(np.mean(_entropy(probabilities)))


def _entropy(probabilities: Float32[np.ndarray, "n classes"]) -> list[float]:
    p = probabilities.astype(np.float64)
    return [float(value) for value in -(p * np.log(np.maximum(p, 1e-12))).sum(axis=1)]
