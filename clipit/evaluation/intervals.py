"""95% intervals: percentile bootstrap over tiles or groups, single and paired, and Student's t over seeds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64, Shaped

from clipit.errors import DataError, counted
from clipit.evaluation.metrics import METRICS, weighted_scores
from clipit.evaluation.predictions import Predictions, align_predictions

LEVEL = 0.95
_BLOCK = 50
_MAX_UNDEFINED = 0.05
_ROUNDING = 1e-12
MIN_UNITS = 10
"""Minimum number of groups, or of tiles without groups, for a bootstrap interval.

Resampling a handful of units gives intervals that are too narrow: n units have only (2n - 1)! / (n! (n - 1)!) different
resamples, 3 for two units. With 5 to 30 clusters, clustered tests reject too often, and more so with fewer clusters
(Cameron, Gelbach and Miller, Review of Economics and Statistics 2008).
"""
NO_VARIATION = "the same in all resamples"
"""Start of the reason for a missing bootstrap interval if all resamples agree."""
NO_SPREAD = "no spread over seeds"
"""Reason for a missing t-interval or p-value if all seeds agree."""

Statistics = Callable[[Float[np.ndarray, "n r"]], dict[str, Float[np.ndarray, " r"]]]
"""Function that maps weights of n tiles in r resamples to the values of named scores; NaN where undefined."""


@dataclass(frozen=True)
class Interval:
    """A 95% interval, or the reason why it is undefined."""

    low: float | None
    high: float | None
    reason: str = ""


@dataclass(frozen=True)
class Estimate:
    """Score or difference (None if undefined) with its interval."""

    value: float | None
    interval: Interval


def group_numbers(groups: Shaped[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Number the resampling units: groups, and single tiles whose group is unknown ("")."""
    unknown = groups == ""
    names, numbers = np.unique(groups, return_inverse=True)
    numbers = numbers.astype(np.int64)
    numbers[unknown] = len(names) + np.arange(int(unknown.sum()))
    return np.unique(numbers, return_inverse=True)[1].astype(np.int64)


def bootstrap(
    statistics: Statistics, groups: Shaped[np.ndarray, " n"], resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """Compute percentile bootstrap intervals of scores that are functions of weighted tiles.

    Each resample draws n of the n units (groups; single tiles if the group is unknown) with replacement; the weight of
    a tile is the number of times its unit was drawn. Resamples in which the score is undefined are dropped. The
    interval is undefined if more than 5% of the resamples are dropped, or if there are fewer than `MIN_UNITS` units. To
    bound memory, resamples are drawn 50 at a time. Resampling biases some scores (it increases the calibration error,
    for example); such a score can lie near the edge of its interval, or outside it.

    If all resamples agree, as they do if every tile is classified correctly, the percentile interval would be a single
    point for any number of tiles. Such an interval is undefined; its reason states the exact one-sided binomial bound
    (Clopper and Pearson, Biometrika 1934; about 3 / n, Hanley and Lippman-Hand, JAMA 1983): a deviation that occurs in
    no more than 1 - 0.05^(1/n) of all units is absent among n units in 5% of samples or more.

    Args:
        statistics: Function that computes the scores.
        groups: Group of each tile; "" where unknown.
        resamples: Number of resamples; 0 for no intervals.
    """
    units = group_numbers(groups)
    n_units = int(units.max()) + 1 if len(units) else 0
    blocks = [statistics(weights) for weights in _resampled_weights(units, n_units, resamples, seed)]
    names = blocks[0] if blocks else statistics(np.ones((len(units), 1)))
    if not resamples:
        return {name: Interval(None, None, "no resamples requested") for name in names}
    if n_units < MIN_UNITS:
        return {name: Interval(None, None, _too_few(n_units)) for name in names}
    return {name: _percentile_interval(np.concatenate([block[name] for block in blocks]), n_units) for name in names}


def estimate(
    statistics: Statistics, groups: Shaped[np.ndarray, " n"], resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Compute statistics of equally weighted items, with `bootstrap` intervals."""
    values = statistics(np.ones((len(groups), 1)))
    intervals = bootstrap(statistics, groups, resamples, seed)
    return {
        name: Estimate(float(value[0]) if np.isfinite(value[0]) else None, intervals[name])
        for name, value in values.items()
    }


def bootstrap_intervals(
    labels: Int64[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n c"],
    groups: Shaped[np.ndarray, " n"],
    resamples: int = 1000,
    seed: int = 0,
    *,
    present_only: bool = False,
) -> dict[str, Interval]:
    """Compute bootstrap intervals for all `metrics.METRICS` on n labelled tiles; see `bootstrap`."""

    def scores(weights: Float[np.ndarray, "n r"]) -> dict[str, Float[np.ndarray, " r"]]:
        return weighted_scores(labels, probabilities, weights, present_only=present_only)

    return bootstrap(scores, groups, resamples, seed)


def paired_bootstrap(
    pairs: Sequence[tuple[Predictions, Predictions]],
    metrics: Sequence[str] = METRICS,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Compute paired differences (second minus first score), averaged over the pairs, with bootstrap intervals.

    Each resample draws the same tiles (entire groups, if known) for all pairs and both classifiers. The interval
    covers only the sampling of test tiles; the t-interval over seeds covers the variation of training.

    Args:
        pairs: Predictions of the baseline and of the other classifier on one split, one pair per seed; rows are matched
            by id.
        metrics: Names of metrics in `metrics.METRICS`.
        resamples: Number of resamples; 0 for no interval.

    Raises:
        DataError: The predictions are for different tiles, or a metric is unknown.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise DataError(f"unknown metric {', '.join(unknown)}", fix=f"use one of: {', '.join(METRICS)}")
    tables = align_predictions([table for pair in pairs for table in pair])
    labels, groups = tables[0].labels, tables[0].patients

    def mean_differences(weights: Float[np.ndarray, "n r"]) -> dict[str, Float[np.ndarray, " r"]]:
        scores = [weighted_scores(labels, table.probabilities, weights, metrics) for table in tables]
        values = {name: np.stack([score[name] for score in scores]) for name in metrics}
        return {name: np.mean(value[1::2] - value[::2], axis=0) for name, value in values.items()}

    return estimate(mean_differences, groups, resamples, seed)


def t_interval(values: Sequence[float | int]) -> Interval:
    """Compute the 95% interval of a mean over seeds: mean +- t(0.975, n - 1) * sd / sqrt(n).

    The interval is undefined for fewer than 2 values, or if all values are equal: t divides by their spread, and an
    interval of width 0 would claim a certainty that a handful of equal values does not justify.

    Raises:
        DataError: A value is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise DataError("an undefined score cannot be averaged", where=list(values), fix="drop undefined scores")
    if len(array) < 2:
        return Interval(None, None, "only one seed" if len(array) else "no seed")
    if not standard_deviation(array):
        return Interval(None, None, NO_SPREAD)
    from scipy.special import stdtrit  # the same quantile as in scipy.stats, which takes long to import

    half = float(stdtrit(len(array) - 1, (1 + LEVEL) / 2)) * float(array.std(ddof=1)) / len(array) ** 0.5
    return Interval(_without_rounding(float(array.mean()) - half), _without_rounding(float(array.mean()) + half))


def standard_deviation(values: Float[np.ndarray, " n"]) -> float:
    """Return the sample standard deviation of two or more values; 0 if it is only rounding error."""
    deviation = float(values.std(ddof=1))
    return deviation if deviation > _ROUNDING * float(np.abs(values).max()) else 0.0


def _resampled_weights(
    units: Int64[np.ndarray, " n"], n_units: int, resamples: int, seed: int
) -> Iterator[Float[np.ndarray, "n r"]]:
    if n_units < MIN_UNITS:
        return
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, _BLOCK):
        size = min(_BLOCK, resamples - start)
        drawn = generator.integers(0, n_units, size=(size, n_units)) + n_units * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n_units).reshape(size, n_units)
        yield counts.T.astype(np.float64)[units]


def _too_few(n_units: int) -> str:
    return f"{counted(n_units, 'independent unit')} to resample; a 95% interval needs {MIN_UNITS}"


def _percentile_interval(values: Float[np.ndarray, " r"], n_units: int) -> Interval:
    defined = values[np.isfinite(values)]
    missing = len(values) - len(defined)
    if missing > _MAX_UNDEFINED * len(values):
        return Interval(None, None, f"undefined in {missing} of {len(values)} resamples")
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if high - low <= _ROUNDING * max(1.0, abs(high)):
        return Interval(None, None, _no_variation(n_units))
    return Interval(_without_rounding(low), _without_rounding(high))


def _without_rounding(bound: float) -> float:
    """Return a bound, or 0 if it is only rounding error, so that rounding does not make a difference significant."""
    return 0.0 if abs(bound) <= _ROUNDING else float(bound)


def _no_variation(n_units: int) -> str:
    """Explain why an interval of width 0 is undefined: n units may contain none of the few units that deviate."""
    unseen = 1 - (1 - LEVEL) ** (1 / n_units)
    return (
        f"{NO_VARIATION} of {counted(n_units, 'independent unit')}; a deviation in up to {100 * unseen:.2g}% of all "
        "units could have been missed"
    )
