"""Linear probes on frozen features: logistic regression (L-BFGS), and eva's protocol (AdamW)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float32, Int64

from clipit.errors import DataError, explain
from clipit.evaluation.metrics import confusion_matrix, confusion_scores
from clipit.evaluation.predictions import softmax

DEFAULT_GRID = tuple(float(c) for c in np.logspace(-4, 4, 17))
_LEAST_PROBABILITY = 1e-6
_ITERATIONS = 2000


@dataclass(frozen=True)
class LinearHead:
    """A fitted linear layer: probabilities = softmax(features @ weight.T + bias).

    Attributes:
        weight: For features as they come (standardisation is folded in).
        bias: Minus infinity for a class that had no training tile.
    """

    weight: Float[np.ndarray, "c d"]
    bias: Float[np.ndarray, " c"]

    def probabilities(self, features: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n c"]:
        """Class probabilities of new features."""
        return softmax(features @ self.weight.T + self.bias)


@dataclass(frozen=True)
class LinearProbe(LinearHead):
    """A logistic regression.

    Attributes:
        strength: The chosen C (inverse of the L2 penalty).
        validation_loss: Mean log-loss on validation for each C of the grid.
        converged: Whether L-BFGS had come to its end at the chosen C.
    """

    strength: float
    validation_loss: dict[float, float]
    converged: bool = True


@dataclass(frozen=True)
class AdamWProbe(LinearHead):
    """A layer trained by gradient descent.

    Attributes:
        step: The step whose weights were kept.
        steps: Steps taken.
        validation_score: Balanced accuracy on validation at `step`.
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
    """Fit a multinomial logistic regression (L-BFGS) with the C of the grid that has the least validation log-loss.

    Features are standardised by the training tiles. Only labelled tiles are used (labels of -1 are left out); of equal
    losses the stronger penalty wins. Test tiles have no part in it. A fit that is not finished after 2,000 iterations
    (a weak penalty on tiles that a plane separates) is judged as it stands.

    Raises:
        DataError: Fewer than two classes among the training labels, no labelled validation tile, or features that are
            not finite.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    train_x, train_y = _labelled(features, labels)
    valid_x, valid_y = _labelled(validation_features, validation_labels)
    present = np.unique(train_y)
    _need_labels(present, valid_y)
    centre, spread = train_x.mean(axis=0), train_x.std(axis=0)
    spread = np.where(spread > 1e-12, spread, 1.0)
    best: LinearProbe | None = None
    losses: dict[float, float] = {}
    for strength in sorted(grid):
        model = LogisticRegression(C=strength, solver="lbfgs", max_iter=_ITERATIONS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # told by `converged`
            model.fit((train_x - centre) / spread, train_y)
        weight, bias = _all_classes(model.coef_ / spread, model.intercept_, present, n_classes)
        converged = int(model.n_iter_.max()) < _ITERATIONS
        probe = LinearProbe(weight, bias - weight @ centre, strength, losses, converged)
        chosen = probe.probabilities(valid_x)[np.arange(len(valid_y)), valid_y]
        losses[strength] = float(-np.log(np.maximum(chosen, _LEAST_PROBABILITY)).mean())
        if best is None or losses[strength] < losses[best.strength]:
            best = probe
    if best is None:
        raise DataError(explain("the grid of strengths is empty", fix="give at least one value of C"))
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
    """One linear layer, trained as eva (kaiko-ai/eva, offline classification) trains its head.

    AdamW (weight decay 0.01, torch's default, as eva runs it) on cross-entropy, features as they come, batches of 256
    in a new order each epoch. Balanced accuracy on validation is looked at after every epoch; the best weights are kept
    (of equal ones the earlier), and training stops after a fifth of all steps without a gain.

    It departs from eva in three things. The learning rate is constant from the first step: in eva a scheduler's default
    divides it by 3 for the first five epochs, which its description does not say and which makes the result depend
    on the length of an epoch. Two classes have two outputs with a soft-max, not one with a sigmoid. Every call is
    seeded.

    Args:
        features: Of the training tiles, in an order that does not change.
        labels: Class numbers; -1 is left out.
        validation_features: Choose the step.
        validation_labels: Of these.
        n_classes: A class without a training tile gets probability 0.
        seed: Draws the start and the batches.
        steps: Most steps.
        learning_rate: Of AdamW.
        batch_size: Tiles per step; the last batch of an epoch may be smaller.
        device: Where torch computes.

    Raises:
        DataError: As `linear_probe`.
    """
    import torch

    train_x, train_y = _labelled(features, labels)
    valid_x, valid_y = _labelled(validation_features, validation_labels)
    present = np.unique(train_y)
    _need_labels(present, valid_y)
    inputs = torch.from_numpy(train_x.astype(np.float32)).to(device)
    wanted = torch.from_numpy(np.searchsorted(present, train_y)).to(device)
    looked_at = torch.from_numpy(valid_x.astype(np.float32)).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = torch.nn.Linear(inputs.shape[1], len(present))
    layer = layer.to(device)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=learning_rate)
    best = AdamWProbe(np.empty((0, 0)), np.empty(0), 0, 0, -1.0)
    step, epoch, patience = 0, 0, -(-steps // 5)
    while step < steps and step - best.step < patience:
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(wanted))).to(device)
        for start in range(0, min(len(order), (steps - step) * batch_size), batch_size):
            rows = order[start : start + batch_size]
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(torch.nn.functional.cross_entropy(layer(inputs[rows]), wanted[rows]))
            optimizer.step()
            step += 1
        epoch += 1
        with torch.no_grad():
            found = present[layer(looked_at).argmax(dim=1).cpu().numpy()]
        confusion = confusion_matrix(valid_y, found, n_classes).astype(np.float64)
        score = float(confusion_scores(confusion[None])["balanced_accuracy"][0])
        if score > best.validation_score:
            weight, bias = np.zeros((n_classes, inputs.shape[1])), np.full(n_classes, -np.inf)
            weight[present] = layer.weight.detach().cpu().numpy()
            bias[present] = layer.bias.detach().cpu().numpy()
            best = AdamWProbe(weight, bias, step, step, score)
    return replace(best, steps=step)


def _need_labels(present: Int64[np.ndarray, " k"], validation_labels: Int64[np.ndarray, " m"]) -> None:
    if len(present) < 2 or not len(validation_labels):
        raise DataError(
            explain(
                f"a linear probe needs training labels of two classes and validation labels; "
                f"there are {len(present)} classes and {len(validation_labels)} validation labels",
                where="tiles.labels",
                fix="label more tiles",
            )
        )


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
