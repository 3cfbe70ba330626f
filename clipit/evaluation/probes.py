"""Linear probe: logistic regression on frozen features, its strength chosen on validation tiles."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64

from clipit.errors import DataError, explain
from clipit.evaluation.predictions import softmax

DEFAULT_GRID = tuple(float(c) for c in np.logspace(-4, 4, 17))
_LEAST_PROBABILITY = 1e-6


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: probabilities = softmax(features @ weight.T + bias).

    Attributes:
        weight: For features as they come (standardisation is folded in).
        bias: Minus infinity for a class that had no training tile.
        strength: The chosen C (inverse of the L2 penalty).
        validation_loss: Mean log-loss on validation for each C of the grid.
    """

    weight: Float[np.ndarray, "c d"]
    bias: Float[np.ndarray, " c"]
    strength: float
    validation_loss: dict[float, float]

    def probabilities(self, features: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n c"]:
        """Class probabilities of new features."""
        return softmax(features @ self.weight.T + self.bias)


def linear_probe(
    features: Float[np.ndarray, "n d"],
    labels: Int64[np.ndarray, " n"],
    validation_features: Float[np.ndarray, "m d"],
    validation_labels: Int64[np.ndarray, " m"],
    n_classes: int,
    grid: Sequence[float] = DEFAULT_GRID,
) -> LinearProbe:
    """Fit a multinomial logistic regression (L-BFGS) with the C of the grid that has the least validation log-loss.

    Features are standardised by the training tiles. Only labelled tiles are used (labels of -1 are left out); of equal
    losses the stronger penalty wins. Test tiles have no part in it.

    Raises:
        DataError: Fewer than two classes among the training labels, no labelled validation tile, or features that are
            not finite.
    """
    from sklearn.linear_model import LogisticRegression

    train_x, train_y = _labelled(features, labels)
    valid_x, valid_y = _labelled(validation_features, validation_labels)
    present = np.unique(train_y)
    if len(present) < 2 or not len(valid_y):
        raise DataError(
            explain(
                f"a linear probe needs training labels of two classes and validation labels; "
                f"there are {len(present)} classes and {len(valid_y)} validation labels",
                where="tiles.labels",
                fix="label more tiles",
            )
        )
    centre, spread = train_x.mean(axis=0), train_x.std(axis=0)
    spread = np.where(spread > 1e-12, spread, 1.0)
    best: LinearProbe | None = None
    losses: dict[float, float] = {}
    for strength in sorted(grid):
        model = LogisticRegression(C=strength, solver="lbfgs", max_iter=2000)
        model.fit((train_x - centre) / spread, train_y)
        weight, bias = _all_classes(model.coef_ / spread, model.intercept_, present, n_classes)
        probe = LinearProbe(weight, bias - weight @ centre, strength, losses)
        chosen = probe.probabilities(valid_x)[np.arange(len(valid_y)), valid_y]
        losses[strength] = float(-np.log(np.maximum(chosen, _LEAST_PROBABILITY)).mean())
        if best is None or losses[strength] < losses[best.strength]:
            best = probe
    if best is None:
        raise DataError(explain("the grid of strengths is empty", fix="give at least one value of C"))
    return best


def _labelled(
    features: Float[np.ndarray, "n d"], labels: Int64[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "k d"], Int64[np.ndarray, " k"]]:
    if not np.isfinite(features).all():
        raise DataError(explain("features that are not finite", fix="check the VLM's precision (fp16 can overflow)"))
    return features[labels >= 0].astype(np.float64), labels[labels >= 0]


def _all_classes(
    coefficients: Float[np.ndarray, "r d"],
    intercept: Float[np.ndarray, " r"],
    present: Int64[np.ndarray, " k"],
    n_classes: int,
) -> tuple[Float[np.ndarray, "c d"], Float[np.ndarray, " c"]]:
    """Rows for all classes; two classes are fitted as one logistic row, which is a softmax against 0."""
    if len(present) == 2:
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        intercept = np.concatenate([np.zeros_like(intercept), intercept])
    weight = np.zeros((n_classes, coefficients.shape[1]))
    bias = np.full(n_classes, -np.inf)
    weight[present], bias[present] = coefficients, intercept
    return weight, bias
