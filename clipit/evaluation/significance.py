"""Test paired differences over seeds, and correct the p-values of several tests with Holm's method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from clipit.errors import DataError
from clipit.evaluation.intervals import NO_SPREAD, standard_deviation

MIN_SEEDS = 5
"""Minimum number of seeds; with fewer, a p-value depends more on the heavy tails of the t distribution than on the
arms."""

Key = TypeVar("Key")


@dataclass(frozen=True)
class Significance:
    """A two-sided p-value, or the reason why it is undefined."""

    p: float | None
    reason: str = ""


def paired_t_test(differences: Sequence[float | int]) -> Significance:
    """Test whether the mean paired difference over seeds is 0: Student's t with n - 1 degrees of freedom, two-sided.

    t = mean / (sd / sqrt(n)). The p-value is undefined for fewer than `MIN_SEEDS` seeds, or if all differences are
    equal, because sd is then 0.

    Raises:
        DataError: A difference is not finite.
    """
    array = np.asarray(differences, dtype=np.float64)
    if not np.isfinite(array).all():
        raise DataError("an undefined score cannot be tested", where=list(differences), fix="drop undefined scores")
    n = len(array)
    if n < MIN_SEEDS:
        return Significance(None, f"{n} of the {MIN_SEEDS} seeds needed")
    deviation = standard_deviation(array)
    if not deviation:
        return Significance(None, NO_SPREAD)
    from scipy.special import stdtr  # `ttest_1samp` gives the same p-value, but scipy.stats takes long to import

    t = float(array.mean()) / (deviation / n**0.5)
    return Significance(2 * float(stdtr(n - 1, -abs(t))))


def holm(family: Mapping[Key, Significance]) -> dict[Key, Significance]:
    """Apply Holm's step-down correction (Holm 1979) to a family of tests, such as all arms x data sets of a table.

    The i-th smallest of m p-values is multiplied by m - i + 1; the results are made monotone and clipped at 1. Tests
    without a p-value keep their reason and do not count towards m.
    """
    tested = {key: test.p for key, test in family.items() if test.p is not None}
    corrected: dict[Key, Significance] = dict(family)
    largest = 0.0
    for i, key in enumerate(sorted(tested, key=lambda key: tested[key])):
        largest = max(largest, min(1.0, (len(tested) - i) * tested[key]))
        corrected[key] = Significance(largest)
    return corrected
