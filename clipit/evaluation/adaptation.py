"""Test-time adaptation without labels: feature statistics, and a transductive reading with a text prior."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64, Shaped

from clipit.errors import DataError, explain
from clipit.evaluation.features import Features
from clipit.evaluation.neighbours import nearest_rows
from clipit.evaluation.zero_shot import unit_rows

ITERATIONS = 10
NEIGHBOURS = 3
_INNER = 5
"""Fixed-point steps of the assignments within an iteration."""
_LIKELIHOOD = 10.0
"""The log-likelihood is weighted by this over the dimension: 1/51 at 512 dimensions. Without it, hundreds of
dimensions would leave the text nothing to say. It was set before anything was measured."""
_LEAST_VARIANCE = 1e-3
"""Of the start, which is 1 / dimension: a dimension without spread must not decide alone."""
_LEAST_PRIOR = 1e-6
FEWEST_TILES = 20


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each feature over some tiles; `statistics_of` makes one.

    Attributes:
        mean: Per feature.
        spread: Standard deviation per feature.
        tiles: How many tiles they are of.
    """

    mean: Float64[np.ndarray, " d"]
    spread: Float64[np.ndarray, " d"]
    tiles: int


def statistics_of(vectors: Float[np.ndarray, "n d"], whose: str = "target") -> Statistics:
    """Mean and standard deviation of each feature.

    Args:
        vectors: Of some tiles.
        whose: Of which they are, for the error.

    Raises:
        DataError: Fewer than 20 tiles, or a vector is not finite.
    """
    _enough(len(vectors), whose)
    check_finite(vectors, f"the {whose} tiles")
    rows = vectors.astype(np.float64)
    return Statistics(rows.mean(axis=0), rows.std(axis=0), len(rows))


def check_finite(vectors: Float[np.ndarray, "n d"], where: str) -> None:
    """Refuse vectors that are no numbers: one of them would spoil every mean.

    Args:
        vectors: Of some tiles.
        where: Which tiles they are, for the error.

    Raises:
        DataError: A vector is not finite.
    """
    wrong = int((~np.isfinite(vectors).all(axis=1)).sum())
    if wrong:
        what = f"vectors of {wrong} of {len(vectors)} tiles are not finite"
        raise DataError(explain(what, where=where, fix="look at these images and at the model's weights"))


def align_statistics(
    vectors: Float[np.ndarray, "n d"], target: Statistics, training: Statistics
) -> Float32[np.ndarray, "n d"]:
    """Features of target tiles, re-centred and re-scaled to the training tiles' statistics, feature by feature.

    x' = (x - m_target) / s_target * s_training + m_training: what AdaBN (Li et al. 2016, arXiv 1603.04779) does to each
    normalisation layer, once, on the frozen features that the head (or the projection's reading) sees. A feature
    without spread among the target or training tiles is only re-centred. It takes the classes to be as frequent in the
    target as in training: where they are not, it moves tiles to the wrong side.

    Args:
        vectors: Of the target tiles.
        target: Their statistics (or those of more tiles of the same origin).
        training: Of the training tiles.
    """
    scaled = (target.spread > 1e-8) & (training.spread > 1e-8)
    factor = np.where(scaled, training.spread / np.where(scaled, target.spread, 1.0), 1.0)
    return np.asarray((vectors - target.mean) * factor + training.mean, dtype=np.float32)


def transductive(
    ids: Shaped[np.ndarray, " n"],
    vectors: Float[np.ndarray, "n d"],
    prior: Float[np.ndarray, "n c"],
    iterations: int = ITERATIONS,
    neighbours: int = NEIGHBOURS,
) -> Float32[np.ndarray, "n c"]:
    """Class probabilities of all tiles at once, from a text prior and from how the tiles lie to one another.

    After the description of TransCLIP (Zanella, Gerin and Ben Ayed, NeurIPS 2024, arXiv 2406.01837) and Histo-TransCLIP
    (arXiv 2409.01883). Over assignments z [n, c] (rows sum to 1), class means m_k and one diagonal variance s shared by
    all classes, it lowers

        - a sum_i sum_k z_ik log N(f_i; m_k, s) - 1/2 sum_ij w_ij z_i . z_j + sum_i KL(z_i || p_i)

    with f_i the unit vectors, p_i the zero-shot text prediction, w_ij the cosine of tiles that are among the 3 nearest
    of one another (half of it where only one way), and a = 10 / d. In turns, 10 times:

        z_ik  <- p_ik exp(a log N(f_i; m_k, s) + sum_j w_ij z_jk), divided by its sum over k (5 times)
        m_k   <- sum_i z_ik f_i / sum_i z_ik
        s     <- sum_ik z_ik (f_i - m_k)^2 / n

    Start: z = p, m_k the means under p, s = 1/d. A class that no tile is assigned to keeps its mean. Nothing depends on
    the order of the tiles; everything depends on which tiles there are, so its results are transductive, and a single
    tile has none.

    Args:
        ids: Unique; ties between neighbours break by them.
        vectors: In the space where the text prior was read.
        prior: Zero-shot probabilities of the tiles.
        iterations: Turns.
        neighbours: Per tile.

    Raises:
        DataError: Fewer than 20 tiles, or vectors of length 0 or not finite.
    """
    n = len(ids)
    _enough(n)
    order = np.argsort(ids, kind="stable")
    f = unit_rows(vectors.astype(np.float64), ids.tolist())[order]
    log_p = np.log(np.maximum(prior.astype(np.float64)[order], _LEAST_PRIOR))
    nearest, weights = _neighbour_weights(ids[order], f, min(neighbours, n - 1))
    dim = f.shape[1]
    z = np.exp(log_p - log_p.max(axis=1, keepdims=True))
    z /= z.sum(axis=1, keepdims=True)
    variance = np.full(dim, 1.0 / dim)
    means = _means(f, z, None)
    for _ in range(iterations):
        # log N up to what is the same for all classes, as they share the variance
        distance = _distances(f, means, variance)
        unary = log_p - _LIKELIHOOD / dim * distance / 2
        for _ in range(_INNER):
            z = _soft(unary + _smoothed(z, nearest, weights))
        means = _means(f, z, means)
        second = ((z.sum(axis=0)[:, None] * means - 2 * z.T @ f) * means).sum(axis=0) / n + (f**2).mean(axis=0)
        variance = np.maximum(second, _LEAST_VARIANCE / dim)
    found = np.empty(z.shape, dtype=np.float32)
    found[order] = z
    return found


def _neighbour_weights(
    ids: Shaped[np.ndarray, " n"], f: Float64[np.ndarray, "n d"], k: int
) -> tuple[Int64[np.ndarray, "n k"], Float64[np.ndarray, "n k"]]:
    """Nearest tiles of each tile, and half their cosine (0 where it is negative)."""
    features = Features(ids, f, np.full(len(ids), -1, dtype=np.int64), np.full(len(ids), ""))
    rows = nearest_rows(features, features, k)
    cosines = np.einsum("nd,nkd->nk", f, f[rows])
    return rows, np.maximum(cosines, 0.0) / 2


def _smoothed(
    z: Float64[np.ndarray, "n c"], nearest: Int64[np.ndarray, "n k"], weights: Float64[np.ndarray, "n k"]
) -> Float64[np.ndarray, "n c"]:
    """W z for the symmetric W whose rows and columns both hold these weights."""
    found: Float64[np.ndarray, "n c"] = np.einsum("nk,nkc->nc", weights, z[nearest])
    np.add.at(found, nearest.ravel(), (weights[:, :, None] * z[:, None, :]).reshape(-1, z.shape[1]))
    return found


def _means(
    f: Float64[np.ndarray, "n d"], z: Float64[np.ndarray, "n c"], before: Float64[np.ndarray, "c d"] | None
) -> Float64[np.ndarray, "c d"]:
    """Weighted means; a class without weight keeps its mean (at the start: the mean of all tiles)."""
    total = z.sum(axis=0)[:, None]
    kept = np.broadcast_to(f.mean(axis=0), (z.shape[1], f.shape[1])) if before is None else before
    found: Float64[np.ndarray, "c d"] = np.where(total > 1e-9, z.T @ f / np.maximum(total, 1e-9), kept)
    return found


def _distances(
    f: Float64[np.ndarray, "n d"], means: Float64[np.ndarray, "c d"], variance: Float64[np.ndarray, " d"]
) -> Float64[np.ndarray, "n c"]:
    """sum_d (f_d - m_kd)^2 / s_d."""
    found: Float64[np.ndarray, "n c"] = (
        (f**2 / variance).sum(axis=1)[:, None]
        - 2 * (f / variance) @ means.T
        + (means**2 / variance).sum(axis=1)[None, :]
    )
    return found


def _soft(logits: Float64[np.ndarray, "n c"]) -> Float64[np.ndarray, "n c"]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: Float64[np.ndarray, "n c"] = powers / powers.sum(axis=1, keepdims=True)
    return found


def _enough(n: int, whose: str = "target") -> None:
    if n < FEWEST_TILES:
        raise DataError(
            explain(
                f"adaptation needs {FEWEST_TILES} {whose} tiles; there are {n}",
                where=f"the {whose} tiles",
                fix=f"give more {whose} tiles, or do without adaptation",
            )
        )
