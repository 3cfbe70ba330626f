"""Test-time adaptation without labels: feature statistics, and transductive prediction with a text prior."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64, Shaped

from clipit.errors import DataError, counted_of
from clipit.evaluation.features import Features
from clipit.evaluation.neighbours import nearest_neighbours
from clipit.evaluation.zero_shot import unit_rows

ITERATIONS = 10
NEIGHBOURS = 3
MIN_TILES = 20
_ASSIGNMENT_STEPS = 5
"""Fixed-point steps of the assignments per iteration."""
_LIKELIHOOD_WEIGHT = 10.0
"""With d features, the log-likelihood has the weight 10 / d. Without the division by d, hundreds of features would
outweigh the text prior. The value was fixed before any evaluation."""
_MIN_VARIANCE = 1e-3
"""Minimum variance as a fraction of its initial value 1 / d, so that a constant feature does not dominate."""
_MIN_PRIOR = 1e-6


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and standard deviation of each feature, from `compute_feature_statistics`."""

    mean: Float64[np.ndarray, " d"]
    std: Float64[np.ndarray, " d"]


def compute_feature_statistics(vectors: Float[np.ndarray, "n d"], role: str = "target") -> FeatureStatistics:
    """Compute the mean and standard deviation of each feature.

    Args:
        vectors: Features, one row per tile.
        role: Role of the tiles in error messages, such as `target` or `training`.

    Raises:
        DataError: There are fewer than 20 tiles, or a feature is not finite.
    """
    _require_tiles(len(vectors), role)
    check_finite_features(vectors, f"the {role} tiles")
    rows = vectors.astype(np.float64)
    return FeatureStatistics(rows.mean(axis=0), rows.std(axis=0))


def check_finite_features(vectors: Float[np.ndarray, "n d"], where: str) -> None:
    """Check that all features are finite, since a single NaN would propagate to every mean.

    Args:
        vectors: Features, one row per tile.
        where: Description of the tiles, for the error message.

    Raises:
        DataError: A feature is not finite.
    """
    n_invalid = int((~np.isfinite(vectors).all(axis=1)).sum())
    if n_invalid:
        problem = f"{counted_of(n_invalid, len(vectors), 'tile has', 'tiles have')} vectors that are not finite"
        raise DataError(problem, where=where, fix="check these images and the model's weights")


def align_statistics(
    vectors: Float[np.ndarray, "n d"], target: FeatureStatistics, training: FeatureStatistics
) -> Float32[np.ndarray, "n d"]:
    """Shift and scale target features to the mean and standard deviation of the training tiles, feature by feature.

    x' = (x - m_target) / s_target * s_training + m_training. AdaBN (Li et al. 2016, arXiv 1603.04779) does this in each
    normalisation layer; here it is done once, on the frozen features. Features that are constant over target or
    training tiles are only shifted. The method assumes that target tiles have the class proportions of the training
    tiles; if the proportions differ, it moves tiles across the decision boundary.

    Args:
        vectors: Features of the target tiles, one row per tile.
        target: Statistics of the target tiles (or of a larger set of the same origin).
        training: Statistics of the training tiles.
    """
    scaled = (target.std > 1e-8) & (training.std > 1e-8)
    factor = np.where(scaled, training.std / np.where(scaled, target.std, 1.0), 1.0)
    return np.asarray((vectors - target.mean) * factor + training.mean, dtype=np.float32)


def transductive(
    ids: Shaped[np.ndarray, " n"],
    vectors: Float[np.ndarray, "n d"],
    prior: Float[np.ndarray, "n c"],
    iterations: int = ITERATIONS,
    neighbours: int = NEIGHBOURS,
) -> Float32[np.ndarray, "n c"]:
    """Predict class probabilities for all tiles jointly, from a text prior and the similarities between tiles.

    Implements TransCLIP (Zanella, Gerin and Ben Ayed, NeurIPS 2024, arXiv 2406.01837) and Histo-TransCLIP (arXiv
    2409.01883), as described in the papers. Over assignments z [n, c] (rows sum to 1), class means m_k and one diagonal
    variance s shared by all classes, it minimises

        - a sum_i sum_k z_ik log N(f_i; m_k, s) - 1/2 sum_ij w_ij z_i . z_j + sum_i KL(z_i || p_i)

    with f_i the unit vectors, p_i the zero-shot probabilities, w_ij the cosine similarity of tiles that are among each
    other's 3 nearest neighbours (half of it if only one is a neighbour of the other), and a = 10 / d. It alternates 10
    times between

        z_ik  <- p_ik exp(a log N(f_i; m_k, s) + sum_j w_ij z_jk), divided by its sum over k (5 times)
        m_k   <- sum_i z_ik f_i / sum_i z_ik
        s     <- sum_ik z_ik (f_i - m_k)^2 / n

    starting from z = p, the class means under p, and s = 1/d. A class without assigned tiles keeps its mean. The result
    depends on the set of tiles, but not on their order; a single tile cannot be predicted.

    Args:
        ids: Unique ids, which break ties between neighbours.
        vectors: Features in the joint space of the text prior, one row per tile.
        prior: Zero-shot class probabilities, one row per tile.
        iterations: Number of alternations.
        neighbours: Number of nearest neighbours per tile.

    Raises:
        DataError: There are fewer than 20 tiles, or a vector is zero or not finite.
    """
    from scipy.special import softmax

    n = len(ids)
    _require_tiles(n)
    order = np.argsort(ids, kind="stable")
    f = unit_rows(vectors.astype(np.float64), ids.tolist())[order]
    log_p = np.log(np.maximum(prior.astype(np.float64)[order], _MIN_PRIOR))
    nearest, weights = _neighbour_weights(ids[order], f, min(neighbours, n - 1))
    dim = f.shape[1]
    z = softmax(log_p, axis=1)
    variance = np.full(dim, 1.0 / dim)
    means = _class_means(f, z, np.broadcast_to(f.mean(axis=0), (z.shape[1], dim)))
    for _ in range(iterations):
        # log N up to a term that is the same for all classes, because they share the variance
        unary = log_p - _LIKELIHOOD_WEIGHT / dim * _squared_distances(f, means, variance) / 2
        for _ in range(_ASSIGNMENT_STEPS):
            z = softmax(unary + _smooth(z, nearest, weights), axis=1)
        means = _class_means(f, z, means)
        within_class = ((z.sum(axis=0)[:, None] * means - 2 * z.T @ f) * means).sum(axis=0) / n + (f**2).mean(axis=0)
        variance = np.maximum(within_class, _MIN_VARIANCE / dim)
    probabilities = np.empty(z.shape, dtype=np.float32)
    probabilities[order] = z
    return probabilities


def _neighbour_weights(
    ids: Shaped[np.ndarray, " n"], f: Float64[np.ndarray, "n d"], k: int
) -> tuple[Int64[np.ndarray, "n k"], Float64[np.ndarray, "n k"]]:
    """Find the nearest neighbours of each tile, each weighted by half its cosine (0 where it is negative)."""
    features = Features(ids, f, np.full(len(ids), -1, dtype=np.int64), np.full(len(ids), ""))
    rows = nearest_neighbours(features, features, k)
    return rows, np.maximum(np.einsum("nd,nkd->nk", f, f[rows]), 0.0) / 2


def _smooth(
    z: Float64[np.ndarray, "n c"], nearest: Int64[np.ndarray, "n k"], weights: Float64[np.ndarray, "n k"]
) -> Float64[np.ndarray, "n c"]:
    """Compute (V + V^T) z, where row i of the sparse matrix V contains the weights of the neighbours of tile i."""
    smoothed: Float64[np.ndarray, "n c"] = np.einsum("nk,nkc->nc", weights, z[nearest])
    np.add.at(smoothed, nearest.ravel(), (weights[:, :, None] * z[:, None, :]).reshape(-1, z.shape[1]))
    return smoothed


def _class_means(
    f: Float64[np.ndarray, "n d"], z: Float64[np.ndarray, "n c"], previous: Float64[np.ndarray, "c d"]
) -> Float64[np.ndarray, "c d"]:
    """Compute the means weighted by the assignments; a class without weight keeps its previous mean."""
    total = z.sum(axis=0)[:, None]
    means: Float64[np.ndarray, "c d"] = np.where(total > 1e-9, z.T @ f / np.maximum(total, 1e-9), previous)
    return means


def _squared_distances(
    f: Float64[np.ndarray, "n d"], means: Float64[np.ndarray, "c d"], variance: Float64[np.ndarray, " d"]
) -> Float64[np.ndarray, "n c"]:
    """Compute sum_d (f_d - m_kd)^2 / s_d."""
    distances: Float64[np.ndarray, "n c"] = (
        (f**2 / variance).sum(axis=1)[:, None]
        - 2 * (f / variance) @ means.T
        + (means**2 / variance).sum(axis=1)[None, :]
    )
    return distances


def _require_tiles(n: int, role: str = "target") -> None:
    if n < MIN_TILES:
        raise DataError(
            f"adaptation needs at least {MIN_TILES} {role} tiles; there are {n}",
            where=f"the {role} tiles",
            fix=f"add {role} tiles, or disable adaptation",
        )
