"""Calibration: temperature scaling on validation labels, and measures of calibration error."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64, Shaped

from clipit.errors import DataError
from clipit.evaluation.intervals import Interval, bootstrap
from clipit.evaluation.metrics import expected_calibration_error
from clipit.evaluation.predictions import softmax

MIN_LABELS = 20
"""Minimum number of validation labels; with fewer, the temperature would overfit them."""
MEASURES = ("ece", "nll", "brier")
_RANGE = (0.02, 50.0)
_MIN_PROBABILITY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature.

    Attributes:
        value: Temperature T; above 1 it softens probabilities, below 1 it sharpens them. Predicted classes do not
            change.
        labels: Number of validation labels used for the fit.
        before: Mean negative log-likelihood of the labelled validation tiles at T = 1.
        after: The same at the fitted T.
    """

    value: float
    labels: int
    before: float
    after: float


def fit_temperature(labels: Int64[np.ndarray, " n"], probabilities: Float[np.ndarray, "n c"]) -> Temperature:
    """Fit the temperature with the lowest negative log-likelihood on labelled validation tiles (Guo et al., ICML 2017).

    T = argmin -1/n sum_i log softmax(l_i / T)[y_i], found by Brent's method over log T. The logits l are the logarithms
    of the probabilities, which differ from the true logits only by a constant per tile that the softmax cancels.

    Args:
        labels: Class indices of the validation tiles; tiles labelled -1 are dropped.
        probabilities: Class probabilities of these tiles, one row per tile.

    Raises:
        DataError: There are fewer than 20 labels, or the loss has no minimum between T = 0.02 and 50 (for instance
            because every validation tile is predicted correctly).
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    known = labels >= 0
    labels, logits = labels[known], _to_logits(probabilities[known])
    if len(labels) < MIN_LABELS:
        raise DataError(
            f"fitting a temperature needs at least {MIN_LABELS} validation labels; there are {len(labels)}",
            where="tiles.labels",
            fix="label more validation tiles, or skip calibration",
        )

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float((logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]).mean())

    low, high = np.log(_RANGE)
    best = float(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x)
    if min(best - low, high - best) < 1e-2:
        raise DataError(
            f"no temperature between {_RANGE[0]:g} and {_RANGE[1]:g} minimises the loss on the {len(labels)} "
            f"validation labels: the loss keeps falling as the temperature approaches {np.exp(best):.3g}",
            where="validation predictions",
            fix="label more validation tiles (there is no minimum if all tiles are predicted correctly, or no better "
            "than chance)",
        )
    return Temperature(float(np.exp(best)), len(labels), loss(0.0), loss(best))


def with_temperature(probabilities: Float[np.ndarray, "n c"], temperature: float) -> Float32[np.ndarray, "n c"]:
    """Scale probabilities with a temperature: softmax(log p / T)."""
    return softmax(_to_logits(probabilities) / temperature)


def weighted_calibration(
    labels: Int64[np.ndarray, " n"], probabilities: Float[np.ndarray, "n c"], weights: Float[np.ndarray, "n r"]
) -> dict[str, Float[np.ndarray, " r"]]:
    """Compute the calibration measures of n labelled tiles, for each of r weightings (one per bootstrap resample).

    ece: see `metrics.expected_calibration_error`. nll: mean of -log p[y]. brier: mean over tiles of the sum over
    classes of (p - y)^2, from 0 to 2 (Brier 1950).
    """
    one_hot = np.eye(probabilities.shape[1])[labels]
    squares = ((probabilities.astype(np.float64) - one_hot) ** 2).sum(axis=1)
    losses = -_to_logits(probabilities)[np.arange(len(labels)), labels]
    total = weights.sum(axis=0)
    return {
        "ece": expected_calibration_error(labels, probabilities, weights),
        "nll": losses @ weights / total,
        "brier": squares @ weights / total,
    }


@dataclass(frozen=True)
class CalibrationScore:
    """A calibration measure with its interval and, for scaled probabilities, the paired change from before scaling."""

    value: float
    interval: Interval
    change: float | None = None
    change_interval: Interval | None = None


def measure_calibration(
    labels: Int64[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n c"],
    groups: Shaped[np.ndarray, " n"],
    before: Float[np.ndarray, "n c"] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, CalibrationScore]:
    """Compute the calibration measures of n labelled tiles with 95% intervals, and their changes if `before` is given.

    Args:
        groups: Patient or slide of each tile; "" where unknown.
        before: Probabilities before scaling, for paired changes; None to omit the changes.
        resamples: Number of bootstrap resamples; 0 for no intervals.
    """

    def compute(weights: Float[np.ndarray, "n r"]) -> dict[str, Float[np.ndarray, " r"]]:
        measures = weighted_calibration(labels, probabilities, weights)
        if before is not None:
            reference = weighted_calibration(labels, before, weights)
            measures |= {f"change {name}": measures[name] - reference[name] for name in MEASURES}
        return measures

    values = {name: float(value[0]) for name, value in compute(np.ones((len(labels), 1))).items()}
    intervals = bootstrap(compute, groups, resamples, seed)
    return {
        name: CalibrationScore(
            values[name], intervals[name], values.get(f"change {name}"), intervals.get(f"change {name}")
        )
        for name in MEASURES
    }


def _to_logits(probabilities: Float[np.ndarray, "n c"]) -> Float64[np.ndarray, "n c"]:
    """Take logarithms; probabilities that underflowed in float32 count as the smallest normal positive float32."""
    return np.asarray(np.log(np.maximum(probabilities.astype(np.float64), _MIN_PROBABILITY)))
