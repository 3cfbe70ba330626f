"""A guard that reads no label of the target: adapt to tiles that no mixture of the training classes explains."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from clipit.errors import DataError, explain
from clipit.evaluation.adaptation import check_finite

LEAST_MISFIT = 8.0
"""Set on the second synthetic world: of 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8, 10 and 15 the one with the highest mean
change of the score over whole sets and over batches, counted alike. docs/method.md has its errors on the first."""
MOST_TILES = 400
"""More tiles count as so many, the most that the limit was set on: with ever more of them any difference, however
small, would be beyond chance, and what adaptation costs would not shrink."""
FEWEST_OF_A_CLASS = 5
_TURNS = 50
"""Of the estimate of the shares."""


@dataclass(frozen=True)
class Reference:
    """Training tiles as a mixture of classes; `reference_of` makes one.

    Attributes:
        whitening: Makes the covariance within classes the unit matrix.
        means: Per class, whitened.
        counts: Training tiles per class.
    """

    whitening: Float64[np.ndarray, "d d"]
    means: Float64[np.ndarray, "c d"]
    counts: Float64[np.ndarray, " c"]


@dataclass(frozen=True)
class Verdict:
    """What the guard says of adapting to some tiles.

    Attributes:
        accepted: Whether to adapt.
        misfit: Of the order of 1 where only the mixture of classes is another than in training.
        reasons: Why not; empty when accepted.
    """

    accepted: bool
    misfit: float
    reasons: tuple[str, ...]


def reference_of(training: Float[np.ndarray, "n d"], predicted: Float[np.ndarray, "n c"]) -> Reference:
    """What the guard compares new tiles with. No label is read: a training tile is of the class that was predicted.

    Args:
        training: Vectors of training tiles.
        predicted: Their class probabilities without adaptation; a class with fewer than 5 tiles is left out.

    Raises:
        DataError: No class has 5 training tiles, or a vector is not finite.
    """
    from sklearn.covariance import LedoitWolf

    check_finite(training, "the training split")
    classes = predicted.argmax(axis=1)
    counts = np.bincount(classes, minlength=predicted.shape[1])
    kept = np.flatnonzero(counts >= FEWEST_OF_A_CLASS)
    if not len(kept):
        raise DataError(
            explain(
                f"no class is predicted for {FEWEST_OF_A_CLASS} training tiles",
                where="the training split",
                fix="give more training tiles (they need no label)",
            )
        )
    rows = training.astype(np.float64)
    means = np.stack([rows[classes == name].mean(axis=0) for name in kept])
    residuals = np.concatenate([rows[classes == name] - mean for name, mean in zip(kept, means, strict=True)])
    values, axes = np.linalg.eigh(LedoitWolf(assume_centered=True).fit(residuals).covariance_)
    whitening = axes / np.sqrt(np.maximum(values, 1e-6 * max(float(values.max()), 1e-12)))
    return Reference(whitening, means @ whitening, counts[kept].astype(np.float64))


def judge(reference: Reference, vectors: Float[np.ndarray, "n d"]) -> Verdict:
    """Accept an adaptation to tiles whose mean no mixture of the training classes explains.

    Adaptation takes the target's classes to be as frequent as in training, or finds its own grouping of the tiles. It
    helps where the pictures changed (stain, blur, scanner) and harms where only the mixture of classes did. The two are
    told apart by a model that allows any mixture: Gaussian classes with the means m_k of the training tiles by
    predicted class and one covariance S within classes (after Ledoit and Wolf 2004). Shares w_k are chosen anew for the
    tiles to be judged, by expectation maximisation (as Saerens, Latinne and Decaestecker 2002 do for new shares of
    classes). With x_i the n tiles' vectors in d dimensions, whitened by S,

        misfit = || mean_i x_i - sum_k w_k m_k ||^2 / d / (1 / min(n, 400) + sum_k w_k^2 / n_k)

    with n_k training tiles of class k: about 1 for tiles that differ from the training tiles in their classes alone,
    since these are the variances of the two means. It is accepted from a misfit of 8 on.

    What it cannot see: pictures that change the spread of the vectors but not their mean (it refuses, though adaptation
    may help); a class that training lacks, and tiles of one new patient or slide that differ as much (it accepts); and
    other pictures together with another mixture, where adaptation still harms.

    Args:
        reference: Of the model and the space that is adapted.
        vectors: Of the target tiles.

    Raises:
        DataError: There is no tile, or a vector is not finite.
    """
    if not len(vectors):
        raise DataError(explain("no tile to judge an adaptation by", where="the target tiles", fix="give some tiles"))
    check_finite(vectors, "the target tiles")
    x = vectors.astype(np.float64) @ reference.whitening
    shares = _shares(reference, x)
    gap = x.mean(axis=0) - shares @ reference.means
    variance = 1 / min(len(x), MOST_TILES) + float((shares**2 / reference.counts).sum())
    misfit = float((gap**2).mean()) / variance
    if misfit >= LEAST_MISFIT:
        return Verdict(True, misfit, ())
    told = f"a mixture of the training classes explains their mean (misfit {misfit:.1f}, at least {LEAST_MISFIT:g})"
    return Verdict(False, misfit, (told,))


def _shares(reference: Reference, x: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, " c"]:
    """Of the classes, those that explain these whitened tiles best."""
    from scipy.special import softmax

    log_densities = x @ reference.means.T - (reference.means**2).sum(axis=1) / 2  # but for what is the same for all
    shares: Float64[np.ndarray, " c"] = reference.counts / reference.counts.sum()
    for _ in range(_TURNS):
        shares = softmax(log_densities + np.log(np.maximum(shares, 1e-12)), axis=1).mean(axis=0)
    return shares


@dataclass(frozen=True)
class Case:
    """One adaptation that the guard judged, and what it truly did.

    Attributes:
        accepted: Whether the guard let it be used.
        change: Of the score.
        low: Lower bound of the change's paired 95 % interval over tiles; None: there is no interval.
        high: Upper bound.
    """

    accepted: bool
    change: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class GuardErrors:
    """How often a guard was wrong over some adaptations whose true change is known.

    Attributes:
        cases: Adaptations judged.
        accepted: Those that the guard let be used.
        without_interval: Those of which nothing can be said but the mean change.
        harmful: Those whose change has its 95 % interval below 0 ...
        let_through: ... and how many of these the guard accepted.
        helpful: Those whose change has its 95 % interval above 0 ...
        refused: ... and how many of these the guard refused.
        share_let_through: let_through / harmful; None without harmful ones.
        share_refused: refused / helpful; None without helpful ones.
        change_always: Mean change of the score over all cases when every adaptation is used; None without cases.
        change_guarded: The same when only accepted ones are.
    """

    cases: int
    accepted: int
    without_interval: int
    harmful: int
    let_through: int
    helpful: int
    refused: int
    share_let_through: float | None
    share_refused: float | None
    change_always: float | None
    change_guarded: float | None


def guard_errors(cases: Sequence[Case]) -> GuardErrors:
    """Count the guard's errors: accepted among the harmful, refused among the helpful.

    Adaptations whose interval holds 0, or that have none, are neither harmful nor helpful. Labels are read for the
    changes, to measure the guard, and never by it.
    """
    harmful = [case for case in cases if case.high is not None and case.high < 0]
    helpful = [case for case in cases if case.low is not None and case.low > 0]
    let_through, refused = sum(case.accepted for case in harmful), sum(not case.accepted for case in helpful)
    n = len(cases)
    return GuardErrors(
        cases=n,
        accepted=sum(case.accepted for case in cases),
        without_interval=sum(case.low is None or case.high is None for case in cases),
        harmful=len(harmful),
        let_through=let_through,
        helpful=len(helpful),
        refused=refused,
        share_let_through=let_through / len(harmful) if harmful else None,
        share_refused=refused / len(helpful) if helpful else None,
        change_always=sum(case.change for case in cases) / n if n else None,
        change_guarded=sum(case.change for case in cases if case.accepted) / n if n else None,
    )
