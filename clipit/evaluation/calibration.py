"""Calibration: temperature scaling on validation labels, and how far probabilities are from what they say."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from clipit.errors import DataError, explain
from clipit.evaluation.metrics import expected_calibration_error
from clipit.evaluation.predictions import softmax

FEWEST_LABELS = 20
"""With fewer validation labels a temperature says more about these tiles than about the classifier."""
MEASURES = ("ece", "nll", "brier")
_RANGE = (0.02, 50.0)
_LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature.

    Attributes:
        value: T; above 1 probabilities become less sure, below 1 surer. The predicted class never changes.
        labels: Validation labels that it was fitted on.
        before: Mean negative log-likelihood of these at T = 1 ...
        after: ... and at T.
    """

    value: float
    labels: int
    before: float
    after: float


def fit_temperature(labels: Int64[np.ndarray, " n"], probabilities: Float[np.ndarray, "n c"]) -> Temperature:
    """The temperature with the least negative log-likelihood on labelled validation tiles (Guo et al., ICML 2017).

    T = argmin -1/n sum_i log softmax(l_i / T)[y_i], found by Brent's method over log T. Logits l are the logarithms of
    the probabilities: a soft-max forgets a constant per tile only, which it forgets again.

    Args:
        labels: Of the validation tiles; -1 is left out.
        probabilities: Of these.

    Raises:
        DataError: Fewer than 20 labels, or the loss has no minimum between T = 0.02 and 50 (as when every validation
            tile is predicted right).
    """
    known = labels >= 0
    labels, logits = labels[known], _logits(probabilities[known])
    if len(labels) < FEWEST_LABELS:
        raise DataError(
            explain(
                f"a temperature needs {FEWEST_LABELS} validation labels; there are {len(labels)}",
                where="tiles.labels",
                fix="label more validation tiles, or do without calibration",
            )
        )
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        """Mean negative log-likelihood at this temperature."""
        return _nll(labels, logits / np.exp(log_temperature))

    low, high = np.log(_RANGE)
    found = float(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x)
    if min(found - low, high - found) < 1e-2:
        raise DataError(
            explain(
                f"no temperature between {_RANGE[0]:g} and {_RANGE[1]:g} fits best: on the {len(labels)} validation "
                f"labels the loss falls towards {np.exp(found):.3g}",
                where="validation predictions",
                fix="this happens when all of them are predicted right, or no better than by chance: label more tiles",
            )
        )
    return Temperature(float(np.exp(found)), len(labels), loss(0.0), loss(found))


def with_temperature(probabilities: Float[np.ndarray, "n c"], temperature: float) -> Float32[np.ndarray, "n c"]:
    """softmax(log p / T)."""
    return softmax(_logits(probabilities) / temperature)


def weighted_calibration(
    labels: Int64[np.ndarray, " n"], probabilities: Float[np.ndarray, "n c"], weights: Float[np.ndarray, "n r"]
) -> dict[str, Float[np.ndarray, " r"]]:
    """`MEASURES` of n labelled tiles, for each of r weightings (one weighting = one resample).

    ece: see `metrics.expected_calibration_error`. nll: mean of -log p[y]. brier: mean over tiles of the sum over
    classes of (p - y)^2, from 0 to 2 (Brier 1950).
    """
    wanted = np.eye(probabilities.shape[1])[labels]
    squares = ((probabilities.astype(np.float64) - wanted) ** 2).sum(axis=1)
    losses = -_logits(probabilities)[np.arange(len(labels)), labels]
    total = weights.sum(axis=0)
    return {
        "ece": expected_calibration_error(labels, probabilities, weights),
        "nll": losses @ weights / total,
        "brier": squares @ weights / total,
    }


def _logits(probabilities: Float[np.ndarray, "n c"]) -> Float64[np.ndarray, "n c"]:
    """Logarithms; a probability that float32 rounded to 0 counts as the smallest that it holds."""
    return np.asarray(np.log(np.maximum(probabilities.astype(np.float64), _LEAST_PROBABILITY)))


def _nll(labels: Int64[np.ndarray, " n"], logits: Float64[np.ndarray, "n c"]) -> float:
    largest = logits.max(axis=1)
    totals = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
    return float((totals - logits[np.arange(len(labels)), labels]).mean())
