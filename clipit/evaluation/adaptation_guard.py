"""Guard for test-time adaptation: decide without labels whether adapting to a set of tiles is safe.

Adaptation helps if images look different from the training tiles (stain, blur, scanner), and hurts if only the class
proportions differ. The guard distinguishes these cases in four steps.

1. Summarise the training tiles as one Gaussian per predicted class, with a shared covariance.
2. Estimate the class proportions that explain the new tiles best under these Gaussians.
3. Compare the mean of the new tiles with the mean that these proportions predict. The misfit is the squared distance
   between the two means, divided by the sampling variance of their difference: about 1 if only the proportions differ.
4. Accept the adaptation if the misfit is at least `MIN_MISFIT`, and refuse it otherwise.

Limitations: the guard does not detect a change in the spread of features that leaves their mean unchanged (it refuses,
although adapting may help). It mistakes a class without training tiles, or one unusual patient, for a change in
appearance (it accepts the adaptation). It also accepts the adaptation if appearance and proportions change together,
although adapting may then hurt.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from clipit.errors import DataError
from clipit.evaluation.test_time_adaptation import check_finite_features

MIN_MISFIT = 8.0
"""Smallest misfit for which the adaptation is accepted.

Of 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8, 10 and 15, this value gives the largest mean gain in score on the second
synthetic world, with full sets and batches weighted equally. docs/results_single_runs.md reports the guard's error
rates on the first world."""
MAX_TILES = 400
"""Upper limit of n in the sampling variance: the size of the largest set that `MIN_MISFIT` was chosen on.

Without this limit, any difference would become significant with enough tiles, while the cost of adapting stays the
same."""
MIN_CLASS_TILES = 5
_EM_ITERATIONS = 50


@dataclass(frozen=True)
class TrainingMixture:
    """Training tiles as a mixture of Gaussian classes with a shared covariance, from `fit_mixture`.

    Attributes:
        whitening: Matrix that whitens the within-class covariance.
        means: Whitened mean per class.
        counts: Number of training tiles per class.
    """

    whitening: Float64[np.ndarray, "d d"]
    means: Float64[np.ndarray, "c d"]
    counts: Float64[np.ndarray, " c"]


@dataclass(frozen=True)
class GuardVerdict:
    """Decision of the guard on a set of tiles.

    Attributes:
        accepted: Whether to adapt.
        misfit: Misfit of the tiles' mean; about 1 if only the class proportions differ from training.
        reason: Why the adaptation was refused; "" if it was accepted.
    """

    accepted: bool
    misfit: float
    reason: str


def fit_mixture(training: Float[np.ndarray, "n d"], predicted: Float[np.ndarray, "n c"]) -> TrainingMixture:
    """Fit the guard's model of the training tiles, with predicted classes instead of labels.

    Args:
        training: Features of training tiles, one row per tile.
        predicted: Class probabilities of these tiles without adaptation. Classes with fewer than 5 tiles are dropped.

    Raises:
        DataError: No class is predicted for at least 5 training tiles, or a feature is not finite.
    """
    from sklearn.covariance import LedoitWolf

    check_finite_features(training, "the training split")
    classes = predicted.argmax(axis=1)
    counts = np.bincount(classes, minlength=predicted.shape[1])
    kept = np.flatnonzero(counts >= MIN_CLASS_TILES)
    if not len(kept):
        raise DataError(
            f"no class is predicted for at least {MIN_CLASS_TILES} training tiles",
            where="the training split",
            fix="add training tiles (they need no labels)",
        )
    rows = training.astype(np.float64)
    means = np.stack([rows[classes == c].mean(axis=0) for c in kept])
    residuals = np.concatenate([rows[classes == c] - mean for c, mean in zip(kept, means, strict=True)])
    values, axes = np.linalg.eigh(LedoitWolf(assume_centered=True).fit(residuals).covariance_)
    whitening = axes / np.sqrt(np.maximum(values, 1e-6 * max(float(values.max()), 1e-12)))
    return TrainingMixture(whitening, means @ whitening, counts[kept].astype(np.float64))


def judge_adaptation(mixture: TrainingMixture, vectors: Float[np.ndarray, "n d"]) -> GuardVerdict:
    """Accept an adaptation if no mixture of the training classes explains the mean of the tiles.

    With class means m_k of the training tiles and n target tiles x_i in d dimensions, both whitened with the covariance
    within the training classes (shrunk as in Ledoit and Wolf 2004), class proportions w_k estimated by expectation
    maximisation (Saerens, Latinne and Decaestecker 2002) and n_k training tiles of class k,

        misfit = || mean_i x_i - sum_k w_k m_k ||^2 / d / (1 / min(n, 400) + sum_k w_k^2 / n_k)

    The denominator is the sampling variance of the difference between the two means.

    Args:
        mixture: Training mixture of the model and feature space that are adapted.
        vectors: Features of the target tiles, one row per tile.

    Raises:
        DataError: There are no tiles, or a feature is not finite.
    """
    if not len(vectors):
        raise DataError(
            "no target tiles to judge the adaptation on", where="the target tiles", fix="pass at least one tile"
        )
    check_finite_features(vectors, "the target tiles")
    x = vectors.astype(np.float64) @ mixture.whitening
    proportions = _estimate_proportions(mixture, x)
    gap = x.mean(axis=0) - proportions @ mixture.means
    variance = 1 / min(len(x), MAX_TILES) + float((proportions**2 / mixture.counts).sum())
    misfit = float((gap**2).mean()) / variance
    if misfit >= MIN_MISFIT:
        return GuardVerdict(True, misfit, "")
    reason = f"a mixture of the training classes explains the tiles' mean (misfit {misfit:.1f}, below {MIN_MISFIT:g})"
    return GuardVerdict(False, misfit, reason)


def _estimate_proportions(mixture: TrainingMixture, x: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, " c"]:
    """Estimate the class proportions that maximise the likelihood of these whitened tiles."""
    from scipy.special import softmax

    log_densities = x @ mixture.means.T - (mixture.means**2).sum(axis=1) / 2  # up to a constant per tile
    proportions: Float64[np.ndarray, " c"] = mixture.counts / mixture.counts.sum()
    for _ in range(_EM_ITERATIONS):
        proportions = softmax(log_densities + np.log(np.maximum(proportions, 1e-12)), axis=1).mean(axis=0)
    return proportions
