"""Linear probes on frozen features: logistic regression (L-BFGS), and eva's protocol (AdamW)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float32, Int64

from clipit.errors import DataError, counted
from clipit.evaluation.logistic import MAX_ITERATIONS, fit_logistic
from clipit.evaluation.metrics import count_scores
from clipit.evaluation.predictions import softmax

DEFAULT_GRID = tuple(float(c) for c in np.logspace(-4, 4, 17))
"""Values of C, the inverse of the L2 penalty, from which `linear_probe` selects."""
_MIN_PROBABILITY = 1e-6


@dataclass(frozen=True)
class LinearHead:
    """A fitted linear layer: probabilities = softmax(features @ weight.T + bias).

    Attributes:
        weight: Weights for raw features (standardisation is folded in), one row per class.
        bias: Bias per class; minus infinity for a class without training tiles.
    """

    weight: Float[np.ndarray, "c d"]
    bias: Float[np.ndarray, " c"]

    def probabilities(self, features: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n c"]:
        """Return the class probabilities for new features."""
        return softmax(features @ self.weight.T + self.bias)


@dataclass(frozen=True)
class LinearProbe(LinearHead):
    """A fitted logistic regression.

    Attributes:
        inverse_penalty: Selected C (inverse of the L2 penalty).
        validation_loss: Mean log loss on the validation tiles for each C.
        converged: Whether L-BFGS converged at the selected C.
    """

    inverse_penalty: float
    validation_loss: dict[float, float]
    converged: bool = True


@dataclass(frozen=True)
class AdamWProbe(LinearHead):
    """A linear layer trained with AdamW.

    Attributes:
        step: Step whose weights were kept.
        steps: Number of steps trained.
        validation_score: Balanced accuracy on the validation tiles at `step`.
    """

    step: int
    steps: int
    validation_score: float


def linear_probe(
    features: Float[np.ndarray, "n d"],
    labels: Int64[np.ndarray, " n"],
    validation_features: Float[np.ndarray, "m d"],
    validation_labels: Int64[np.ndarray, " m"],
    n_classes: int,
    grid: Sequence[float] = DEFAULT_GRID,
) -> LinearProbe:
    """Fit a multinomial logistic regression (L-BFGS) with the C from the grid that has the lowest validation log loss.

    Features are standardised with the mean and standard deviation of the training tiles. Tiles labelled -1 are
    dropped; ties go to the stronger penalty. A fit that has not converged after 2,000 iterations (a weak penalty on
    linearly separable tiles) is still used. A grid with a single value needs no validation labels.

    Raises:
        DataError: There are fewer than two classes among the training labels, or no labelled validation tile to choose
            among several values of C, or a feature is not finite.
    """
    train_x, train_y = _labelled(features, labels)
    valid_x, valid_y = _labelled(validation_features, validation_labels)
    present = np.unique(train_y)
    if len(grid) != 1 or len(present) < 2:
        _require_labels(present, valid_y)
    centre, scale = train_x.mean(axis=0), train_x.std(axis=0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    best: LinearProbe | None = None
    losses: dict[float, float] = {}
    for inverse_penalty in sorted(grid):
        model = fit_logistic((train_x - centre) / scale, train_y, inverse_penalty)
        weight, bias = _all_classes(model.coef_ / scale, model.intercept_, present, n_classes)
        converged = int(model.n_iter_.max()) < MAX_ITERATIONS
        probe = LinearProbe(weight, bias - weight @ centre, inverse_penalty, losses, converged)
        if len(valid_y):
            likelihood = probe.probabilities(valid_x)[np.arange(len(valid_y)), valid_y]
            losses[inverse_penalty] = float(-np.log(np.maximum(likelihood, _MIN_PROBABILITY)).mean())
        if best is None or losses[inverse_penalty] < losses[best.inverse_penalty]:
            best = probe
    if best is None:
        raise DataError("no value of C to choose from", fix="pass at least one value of C")
    return best


def adamw_probe(
    features: Float[np.ndarray, "n d"],
    labels: Int64[np.ndarray, " n"],
    validation_features: Float[np.ndarray, "m d"],
    validation_labels: Int64[np.ndarray, " m"],
    n_classes: int,
    *,
    seed: int = 0,
    steps: int = 12_500,
    learning_rate: float = 3e-4,
    batch_size: int = 256,
    device: str = "cpu",
) -> AdamWProbe:
    """Train one linear layer following the offline classification protocol of eva (kaiko-ai/eva).

    The layer is trained with AdamW (weight decay 0.01, PyTorch's default, as in eva) and cross-entropy on raw features,
    in batches of 256 that are reshuffled each epoch. The balanced accuracy on the validation tiles is computed after
    every epoch; the best weights are kept (the earliest if tied), and training stops after a fifth of all steps without
    improvement.

    There are three differences from eva. The learning rate is constant: in eva, a scheduler's default divides it by 3
    for the first five epochs. eva's documentation does not mention this division, and it makes the result depend on
    the length of an epoch. Two classes have two outputs with a softmax instead of one with a sigmoid. Every call is
    seeded.

    Args:
        features: Features of the training tiles, in a fixed order.
        labels: Class indices; tiles labelled -1 are dropped.
        validation_features: Features of the validation tiles, which select the step.
        n_classes: Number of classes; a class without training tiles gets probability 0.
        seed: Seed for the initial weights and the batches.
        steps: Maximum number of steps.
        batch_size: Tiles per step; the last batch of an epoch may be smaller.

    Raises:
        DataError: See `linear_probe`.
    """
    import torch

    train_x, train_y = _labelled(features, labels)
    valid_x, valid_y = _labelled(validation_features, validation_labels)
    present = np.unique(train_y)
    _require_labels(present, valid_y)
    inputs = torch.from_numpy(train_x.astype(np.float32)).to(device)
    targets = torch.from_numpy(np.searchsorted(present, train_y)).to(device)
    validation_inputs = torch.from_numpy(valid_x.astype(np.float32)).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = torch.nn.Linear(inputs.shape[1], len(present))
    layer = layer.to(device)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=learning_rate)
    best = AdamWProbe(np.empty((0, 0)), np.empty(0), 0, 0, -1.0)
    step, epoch, patience = 0, 0, -(-steps // 5)
    while step < steps and step - best.step < patience:
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(targets))).to(device)
        for start in range(0, min(len(order), (steps - step) * batch_size), batch_size):
            rows = order[start : start + batch_size]
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(torch.nn.functional.cross_entropy(layer(inputs[rows]), targets[rows]))
            optimizer.step()
            step += 1
        epoch += 1
        with torch.no_grad():
            predicted = present[layer(validation_inputs).argmax(dim=1).cpu().numpy()]
        counts = [
            np.bincount(y, minlength=n_classes)[None] for y in (valid_y[predicted == valid_y], valid_y, predicted)
        ]
        score = float(count_scores(*(count.astype(np.float64) for count in counts))["balanced_accuracy"][0])
        if score > best.validation_score:
            coefficients, intercept = (part.detach().cpu().numpy() for part in (layer.weight, layer.bias))
            weight, bias = _all_classes(coefficients, intercept, present, n_classes)
            best = AdamWProbe(weight, bias, step, step, score)
    return replace(best, steps=step)


def _require_labels(present: Int64[np.ndarray, " k"], validation_labels: Int64[np.ndarray, " m"]) -> None:
    if len(present) < 2 or not len(validation_labels):
        raise DataError(
            "a linear probe needs training labels from at least two classes, and validation labels; "
            f"found {counted(len(present), 'class', 'classes')} and "
            f"{counted(len(validation_labels), 'validation label')}",
            where="tiles.labels",
            fix="label more tiles",
        )


def _labelled(
    features: Float[np.ndarray, "n d"], labels: Int64[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "k d"], Int64[np.ndarray, " k"]]:
    if not np.isfinite(features).all():
        raise DataError("some features are not finite", fix="check the VLM's precision (fp16 can overflow)")
    return features[labels >= 0].astype(np.float64), labels[labels >= 0]


def _all_classes(
    coefficients: Float[np.ndarray, "r d"],
    intercept: Float[np.ndarray, " r"],
    present: Int64[np.ndarray, " k"],
    n_classes: int,
) -> tuple[Float[np.ndarray, "c d"], Float[np.ndarray, " c"]]:
    """Expand a fit to all classes; for two classes, scikit-learn returns one row, and the other is 0."""
    if len(coefficients) == 1:
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        intercept = np.concatenate([np.zeros_like(intercept), intercept])
    weight = np.zeros((n_classes, coefficients.shape[1]))
    bias = np.full(n_classes, -np.inf)
    weight[present], bias[present] = coefficients, intercept
    return weight, bias
