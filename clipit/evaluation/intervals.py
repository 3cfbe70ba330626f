"""95 % intervals: seeded percentile bootstrap over tiles or whole groups, and Student's t over seeds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64, Shaped

from clipit.errors import DataError, explain
from clipit.evaluation.metrics import weighted_scores

LEVEL = 0.95
_CHUNK = 50
_MOST_UNDEFINED = 0.05
_FLOAT_ERROR = 1e-12
NO_SPREAD = "no spread over seeds"
"""Why there is neither a t interval nor a p-value where all seeds agree."""

Statistics = Callable[[Float[np.ndarray, "n r"]], dict[str, Float[np.ndarray, " r"]]]
"""Weights of n tiles in r resamples to the values of named scores in each resample; NaN: not defined."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval, or the reason why there is none."""

    low: float | None
    high: float | None
    reason: str = ""


@dataclass(frozen=True)
class Difference:
    """Second minus first score on the same tiles, with its interval."""

    value: float | None
    interval: Interval


def group_numbers(groups: Shaped[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Number of the unit that is resampled for each tile: its group, or the tile itself where that is unknown ("")."""
    unknown = groups == ""
    names, numbers = np.unique(groups, return_inverse=True)
    numbers = numbers.astype(np.int64)
    numbers[unknown] = len(names) + np.arange(int(unknown.sum()))
    return np.unique(numbers, return_inverse=True)[1].astype(np.int64)


def bootstrap(
    statistics: Statistics, groups: Shaped[np.ndarray, " n"], resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """Percentile bootstrap intervals of any scores that can be computed from weighted tiles.

    As many units as there are (whole groups; single tiles where the group is unknown) are drawn with replacement; a
    tile's weight is how often its unit was drawn. A resample in which a score is not defined is left out; if more than
    5 % are, there is no interval. Memory is bounded: resamples are made 50 at a time. A score that resampling biases
    (the calibration error rises with it) can lie near the interval's edge or outside.

    Args:
        statistics: Computes the scores.
        groups: Group of each tile; "" where unknown.
        resamples: Number of resamples.
        seed: The same seed draws the same resamples.
    """
    units = group_numbers(groups)
    n_units = int(units.max()) + 1 if len(units) else 0
    parts = [statistics(weights) for weights in _resampled_weights(units, n_units, resamples, seed)]
    names = statistics(np.ones((len(units), 1))) if not parts else parts[0]
    if n_units < 2:
        return {name: Interval(None, None, f"{n_units} independent unit to resample; 2 are needed") for name in names}
    if not parts:
        return {name: Interval(None, None, "no resamples asked for") for name in names}
    return {name: _percentiles(np.concatenate([part[name] for part in parts])) for name in names}


def bootstrap_intervals(
    labels: Int64[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n c"],
    groups: Shaped[np.ndarray, " n"],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of all of `metrics.METRICS` of n labelled tiles; see `bootstrap`."""
    return bootstrap(lambda weights: weighted_scores(labels, probabilities, weights), groups, resamples, seed)


def paired_differences(
    labels: Int64[np.ndarray, " n"],
    first: Float[np.ndarray, "n c"],
    second: Float[np.ndarray, "n c"],
    groups: Shaped[np.ndarray, " n"],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Difference]:
    """Second minus first classifier's scores on the same tiles; both see the same resamples (see `bootstrap`)."""

    def differences(weights: Float[np.ndarray, "n r"]) -> dict[str, Float[np.ndarray, " r"]]:
        """Second minus first classifier's scores in each resample."""
        old, new = (weighted_scores(labels, probabilities, weights) for probabilities in (first, second))
        return {name: new[name] - old[name] for name in new}

    intervals = bootstrap(differences, groups, resamples, seed)
    values = differences(np.ones((len(labels), 1)))
    return {
        name: Difference(float(value[0]) if np.isfinite(value[0]) else None, intervals[name])
        for name, value in values.items()
    }


def t_interval(values: Sequence[float | int]) -> tuple[float, float] | None:
    """The bounds of `interval_over_seeds`; None where there is no interval.

    Raises:
        DataError: A value is not finite.
    """
    found = interval_over_seeds(values)
    return None if found.low is None or found.high is None else (found.low, found.high)


def interval_over_seeds(values: Sequence[float | int]) -> Interval:
    """95 % interval of a mean over seeds: mean +- t(0.975, n - 1) * sd / sqrt(n).

    There is none below 2 values, nor where all values are equal: t divides by their spread, and an interval of width 0
    would claim a certainty that a handful of equal values does not give.

    Raises:
        DataError: A value is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise DataError(explain("a score that is not defined has no place in a mean", where=list(values)))
    if len(array) < 2:
        return Interval(None, None, "one seed: none" if len(array) else "no seed: none")
    if not spread_over_seeds(array):
        return Interval(None, None, NO_SPREAD)
    from scipy.special import stdtrit

    half = float(stdtrit(len(array) - 1, (1 + LEVEL) / 2)) * float(array.std(ddof=1)) / len(array) ** 0.5
    return Interval(float(array.mean()) - half, float(array.mean()) + half)


def spread_over_seeds(values: Float[np.ndarray, " n"]) -> float:
    """Standard deviation (n - 1) of two or more values; 0 where it is nothing but float error."""
    spread = float(values.std(ddof=1))
    return spread if spread > _FLOAT_ERROR * float(np.abs(values).max()) else 0.0


def _resampled_weights(
    units: Int64[np.ndarray, " n"], n_units: int, resamples: int, seed: int
) -> Iterator[Float[np.ndarray, "n r"]]:
    if n_units < 2:
        return
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        drawn = generator.integers(0, n_units, size=(size, n_units)) + n_units * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n_units).reshape(size, n_units)
        yield counts.T.astype(np.float64)[units]


def _percentiles(values: Float[np.ndarray, " r"]) -> Interval:
    defined = values[np.isfinite(values)]
    missing = len(values) - len(defined)
    if missing > _MOST_UNDEFINED * len(values):
        return Interval(None, None, f"not defined in {missing} of {len(values)} resamples")
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
