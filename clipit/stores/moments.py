"""Mean and standard deviation of stored features, for standardisation."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Float32

_MIN_DEVIATION = 1e-6


def mean_and_deviation(
    batches: Iterable[Float[np.ndarray, "_ d"]], max_rows: int
) -> tuple[Float32[np.ndarray, " d"], Float32[np.ndarray, " d"]]:
    """Compute mean and standard deviation of features that are read in batches.

    Args:
        batches: Features of one bag or image per batch; at least one row in total.
        max_rows: Maximum number of rows used per batch, evenly spaced.

    Returns:
        Mean and standard deviation; the latter is 1 for constant features.
    """
    total, squares, count = np.zeros(1), np.zeros(1), 0
    for values in batches:
        chosen = values[:: max(1, -(-len(values) // max_rows))].astype(np.float64)
        total = total + chosen.sum(axis=0)
        squares = squares + (chosen**2).sum(axis=0)
        count += len(chosen)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    deviation[deviation < _MIN_DEVIATION] = 1.0
    return mean.astype(np.float32), deviation.astype(np.float32)
