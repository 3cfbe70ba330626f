"""Is a difference more than chance? Over seeds (paired t, Holm) and over test tiles (paired bootstrap)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from clipit.errors import DataError, explain
from clipit.evaluation.intervals import NO_SPREAD, Difference, bootstrap, spread_over_seeds
from clipit.evaluation.metrics import METRICS, weighted_scores
from clipit.evaluation.predictions import Predictions, align_predictions

FEWEST_SEEDS = 5
"""A p-value over fewer seeds says more about the t distribution's tails than about the arms."""

Key = TypeVar("Key")


@dataclass(frozen=True)
class Significance:
    """A two-sided p-value, or the reason why there is none."""

    p: float | None
    reason: str = ""


def paired_t_test(differences: Sequence[float | int]) -> Significance:
    """Two-sided p of the mean paired difference over seeds being 0: Student's t with n - 1 degrees of freedom.

    t = mean / (sd / sqrt(n)). There is no p-value under `FEWEST_SEEDS` seeds, nor where all differences are equal (the
    spread over seeds, which t divides by, is then 0).

    Raises:
        DataError: A difference is not finite.
    """
    array = np.asarray(differences, dtype=np.float64)
    if not np.isfinite(array).all():
        raise DataError(explain("a score that is not defined has no place in a test", where=list(differences)))
    n = len(array)
    if n < FEWEST_SEEDS:
        return Significance(None, f"{n} seeds; a p-value needs {FEWEST_SEEDS}")
    spread = spread_over_seeds(array)
    if not spread:
        return Significance(None, NO_SPREAD)
    from scipy.special import stdtr

    t = float(array.mean()) / (spread / n**0.5)
    return Significance(2 * float(stdtr(n - 1, -abs(t))))


def holm(family: Mapping[Key, Significance]) -> dict[Key, Significance]:
    """Holm's step-down correction over a family of tests (Holm 1979), such as all arms x data sets of a table.

    The i-th smallest of m p-values is multiplied by m - i + 1; none falls below a smaller one's result, nor rises above
    1. Tests without a p-value keep their reason and do not count towards m.
    """
    tested = {key: test.p for key, test in family.items() if test.p is not None}
    order = sorted(tested, key=lambda key: tested[key])
    corrected: dict[Key, Significance] = dict(family)
    largest = 0.0
    for i, key in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - i) * tested[key]))
        corrected[key] = Significance(largest)
    return corrected


def paired_bootstrap_over_tiles(
    pairs: Sequence[tuple[Predictions, Predictions]], metric: str = "accuracy", resamples: int = 1000, seed: int = 0
) -> Difference:
    """Second minus first score, averaged over seeds, with one interval for the chance of the test tiles.

    In each resample the same tiles (whole groups, where known) are drawn for all seeds and both sides; a resample's
    value is the mean difference over seeds. What training again would change is not in this interval: that is the t
    interval over seeds.

    Args:
        pairs: Per seed the baseline's and the arm's predictions of one and the same split, in any order of rows.
        metric: One of `metrics.METRICS`.
        resamples: Number of resamples; 0: no interval.
        seed: Of the resampling.

    Raises:
        DataError: The predictions are not of the same tiles, or the metric is unknown.
    """
    if metric not in METRICS:
        raise DataError(explain(f"no score is called {metric}", fix=f"use one of: {', '.join(METRICS)}"))
    tables = align_predictions([table for pair in pairs for table in pair])
    labels = tables[0].labels

    def mean_difference(weights: Float[np.ndarray, "n r"]) -> dict[str, Float[np.ndarray, " r"]]:
        """Mean over seeds of second minus first score, in each resample."""
        scores = [weighted_scores(labels, table.probabilities, weights, (metric,))[metric] for table in tables]
        return {metric: np.mean(np.stack(scores[1::2]) - np.stack(scores[::2]), axis=0)}

    value = float(mean_difference(np.ones((len(labels), 1)))[metric][0])
    interval = bootstrap(mean_difference, tables[0].groups, resamples, seed)[metric]
    return Difference(value if np.isfinite(value) else None, interval)
