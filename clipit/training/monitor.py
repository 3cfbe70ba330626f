"""Monitored metric: the validation score that selects the best step."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from clipit.config.run import RunConfig
from clipit.evaluation.metrics import compute_metrics, explain_undefined
from clipit.evaluation.predictions import softmax
from clipit.tiles.tileset import TileSet
from clipit.training.terms.term import Probabilities, Term

logger = logging.getLogger(__name__)

LABEL_FREE = ("agreement", "information")
"""Values of `training.monitor` that need no validation labels."""
Monitor = Callable[[Float32[np.ndarray, "n classes"]], float | None]
"""Function from the logits of the validation tiles to the monitored metric; higher is better, None if undefined."""


def make_monitor(config: RunConfig, validation: TileSet, terms: Sequence[Term[Any]]) -> Monitor | None:
    """Build the monitored metric on the validation tiles; None if it cannot be computed.

    Args:
        config: Run configuration, with its arm resolved.
        validation: Validation tiles, in the order of the logits.
        terms: Prepared loss terms of the run; the metric `agreement` needs a term with class targets.
    """
    metric = config.training.monitor
    if metric == "information" and len(validation):
        return lambda logits: information(softmax(logits))
    if metric == "agreement" and len(validation):
        targets = [term.class_probabilities("validation") for term in terms if term.supervises_unlabelled]
        target = next((target for target in targets if target is not None), None)
        if target is not None:
            return lambda logits: target_agreement(logits, target)
    if not (validation.labels >= 0).any():
        logger.info("note: no validation tile has a label; the last step's weights are used")
        return None

    def score(logits: Float32[np.ndarray, "n classes"]) -> float | None:
        value: float | None = compute_metrics(validation.labels, softmax(logits))[metric]
        return value

    if score(np.zeros((len(validation), len(validation.classes)), dtype=np.float32)) is None:
        reason = explain_undefined(metric, validation.labels, validation.classes, unit="validation tile")
        logger.info(f"note: {metric} is undefined ({reason}); the last step's weights are used")
        return None
    return score


def target_agreement(logits: Float32[np.ndarray, "n classes"], targets: Probabilities) -> float:
    """Compute the fraction of tiles whose predicted class is the most probable class of their target."""
    return float((logits.argmax(axis=1) == targets.argmax(axis=1)).mean())


def information(probabilities: Float32[np.ndarray, "n classes"]) -> float:
    """Compute H(mean p) - mean H(p), which is large if p is confident and covers all classes (Krause et al., 2010)."""
    mean = probabilities.mean(axis=0)
    return _entropy(mean[None])[0] - float(np.mean(_entropy(probabilities)))


def _entropy(probabilities: Float32[np.ndarray, "n classes"]) -> list[float]:
    p = probabilities.astype(np.float64)
    return [float(value) for value in -(p * np.log(np.maximum(p, 1e-12))).sum(axis=1)]
