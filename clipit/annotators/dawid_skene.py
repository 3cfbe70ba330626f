"""Dawid-Skene model: true classes and the confusion matrix of each annotator, estimated jointly by EM.

Dawid and Skene, Applied Statistics 28(1), 1979: an annotator labels a tile of true class k as class l with
probability `confusions[annotator, k, l]`, independently of the other annotators.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from clipit.annotators.votes import Votes
from clipit.errors import DataError

SMOOTHING = 0.01
"""Pseudo-count added to each cell of a confusion matrix and to each class, so that no probability is 0."""
_MIN_PROBABILITY = 1e-10  # lowest probability without smoothing, as in crowd-kit


@dataclass(frozen=True, eq=False)
class DawidSkene:
    """Estimates of the Dawid-Skene model.

    Attributes:
        posteriors: Probability of each true class, one row per item of the votes.
        priors: Fraction of each true class.
        confusions: Probability of each label (last axis) by annotator and true class.
        log_likelihood: Log likelihood of all labels under these estimates.
        objective: Log likelihood plus the logarithm of the smoothing prior after each iteration; it never decreases.
        converged: Whether EM stopped because the objective had almost stopped increasing, before the maximum number
            of iterations.
    """

    posteriors: Float64[np.ndarray, "n c"]
    priors: Float64[np.ndarray, " c"]
    confusions: Float64[np.ndarray, "a c c"]
    log_likelihood: float
    objective: tuple[float, ...]
    converged: bool

    @property
    def accuracies(self) -> Float64[np.ndarray, " a"]:
        """Probability that an annotator's label is the true class, under the class priors."""
        accuracies: Float64[np.ndarray, " a"] = np.einsum("k,akk->a", self.priors, self.confusions)
        return accuracies


def dawid_skene(
    votes: Votes,
    weights: Float64[np.ndarray, " n"] | None = None,
    *,
    smoothing: float = SMOOTHING,
    iterations: int = 1000,
    tolerance: float = 1e-8,
) -> DawidSkene:
    """Estimate true classes and confusion matrices by EM, initialised with vote fractions.

    Formulas: E step p(k | i) ~ priors_k prod_v confusions[a_v, k, l_v]; M step confusions[a, k, l] ~ s + sum over the
    votes of a for l of p(k | i), priors_k ~ s + sum_i p(k | i), with smoothing s (a symmetric Dirichlet prior with
    concentration 1 + s).

    Args:
        votes: Labels given by the annotators. Anonymous votes count as repeated labels of one annotator, so that all
            annotators share one confusion matrix.
        weights: Number of identical items that each item stands for; 1 each by default.
        smoothing: Pseudo-count s of each cell; 0 gives maximum-likelihood estimates, with probabilities of at least
            1e-10.
        iterations: Maximum number of iterations.
        tolerance: EM stops when the objective per label increases by less than this value.

    Raises:
        DataError: There are no labels.
    """
    from scipy import sparse
    from scipy.special import logsumexp

    n, a, c = len(votes.items), len(votes.annotators), len(votes.classes)
    if not n or not c:
        raise DataError("no annotator labels", where="tiles.annotations", fix="add labels to the file")
    weights = np.ones(n) if weights is None else weights
    label_counts = sparse.csr_array(
        (votes.times.astype(np.float64), (votes.item, votes.annotator * c + votes.label)), shape=(n, a * c)
    )
    total = float((weights[votes.item] * votes.times).sum())
    shares = votes.counts().astype(np.float64)
    posteriors = shares / shares.sum(axis=1, keepdims=True)
    objective: list[float] = []
    log_likelihood, converged = -np.inf, False
    while True:
        weighted = posteriors * weights[:, None]
        priors = _normalise(weighted.sum(axis=0), smoothing)
        confusions = _normalise((label_counts.T @ weighted).reshape(a, c, c).swapaxes(1, 2), smoothing)
        log_joint = np.log(priors) + label_counts @ np.log(confusions).swapaxes(1, 2).reshape(a * c, c)
        evidence = logsumexp(log_joint, axis=1)
        posteriors = np.exp(log_joint - evidence[:, None])
        log_likelihood = float((weights * evidence).sum())
        prior = smoothing * float(np.log(priors).sum() + np.log(confusions).sum())
        objective.append(log_likelihood + prior)
        converged = len(objective) > 1 and objective[-1] - objective[-2] < tolerance * total
        if converged or len(objective) >= iterations:
            break
    return DawidSkene(posteriors, priors, confusions, log_likelihood, tuple(objective), converged)


def _normalise(counts: Float64[np.ndarray, "*k c"], smoothing: float) -> Float64[np.ndarray, "*k c"]:
    """Turn counts along the last axis into probabilities of at least 1e-10; rows of zeros become uniform."""
    raised = counts + smoothing
    total = raised.sum(axis=-1, keepdims=True)
    shares = np.where(total > 0, raised / np.where(total > 0, total, 1.0), 1.0 / counts.shape[-1])
    clipped: Float64[np.ndarray, "*k c"] = np.maximum(shares, _MIN_PROBABILITY)
    return clipped
