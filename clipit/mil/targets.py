"""Bag targets in addition to labels, for training only: class probabilities and vectors, and the loss of each."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, Shaped
from torch import Tensor

from clipit.mil.mil_bags import MilBags
from clipit.mil.network import MilNetwork, MilOutput
from clipit.output_files.artifacts import fingerprint


@dataclass(frozen=True, eq=False)
class BagTargets:
    """Targets of training bags; a model trained with them needs only the features of a bag to predict.

    Attributes:
        names: Unique names of bags.
        probabilities: Class probabilities, one row per bag.
        weights: Weight of the cross-entropy with the probabilities, from 0 to 1; 0 for bags without probabilities.
        vectors: Unit vectors that bag representations learn to predict.
        distilled: Whether each bag has a vector.
        label_weight: Weight of the mean cross-entropy in the loss.
        vector_weight: Weight of the mean cosine distance in the loss.
        notes: Remarks on the source of the targets and on bags without targets.
    """

    names: Shaped[np.ndarray, " b"]
    probabilities: Float32[np.ndarray, "b c"]
    weights: Float32[np.ndarray, " b"]
    vectors: Float32[np.ndarray, "b d"]
    distilled: Bool[np.ndarray, " b"]
    label_weight: float = 1.0
    vector_weight: float = 1.0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that the weights of the loss are positive."""
        if self.label_weight <= 0 or self.vector_weight <= 0:
            raise ValueError("label_weight and vector_weight must be positive")

    @property
    def dim(self) -> int:
        """Dimension of the vectors; 0 if no bag has one."""
        return int(self.vectors.shape[1]) if self.distilled.any() else 0

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of all targets and their weights."""
        digest = hashlib.sha256()
        for array in (self.probabilities, self.weights, self.vectors, self.distilled):
            digest.update(np.ascontiguousarray(array).tobytes())
        return fingerprint([self.names.tolist(), digest.hexdigest(), self.label_weight, self.vector_weight])

    def rows(self, names: Shaped[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Return the row of each bag; -1 for bags without a target."""
        used = np.flatnonzero((self.weights > 0) | self.distilled)
        row_of = dict(zip(self.names[used].tolist(), used.tolist(), strict=True))
        return np.array([row_of.get(name, -1) for name in names.tolist()], dtype=np.int64)


def label_targets(
    names: Shaped[np.ndarray, " b"],
    probabilities: Float32[np.ndarray, "b c"],
    weights: Float32[np.ndarray, " b"],
    notes: Sequence[str] = (),
) -> BagTargets:
    """Create targets from class probabilities alone."""
    empty = np.zeros((len(names), 0), dtype=np.float32)
    return BagTargets(names, probabilities, weights, empty, np.zeros(len(names), dtype=np.bool_), notes=tuple(notes))


def vector_targets(
    names: Shaped[np.ndarray, " b"],
    vectors: Float32[np.ndarray, "b d"],
    distilled: Bool[np.ndarray, " b"],
    classes: int,
    notes: Sequence[str] = (),
) -> BagTargets:
    """Create targets from vectors alone; `classes` is the number of classes of the bags."""
    zeros = np.zeros(len(names), dtype=np.float32)
    uniform = np.full((len(names), classes), 1 / classes, dtype=np.float32)
    return BagTargets(names, uniform, zeros, vectors, distilled, notes=tuple(notes))


def join_targets(labels: BagTargets, vectors: BagTargets) -> BagTargets:
    """Combine the probabilities of one set of targets with the vectors of a second set, for the same bags."""
    same = vectors.names.tolist() == labels.names.tolist()
    if not same:
        raise ValueError("both sets of targets must list the same bags in the same order")
    notes = tuple(dict.fromkeys((*labels.notes, *vectors.notes)))
    return replace(vectors, probabilities=labels.probabilities, weights=labels.weights, notes=notes)


@dataclass(frozen=True, eq=False)
class TargetedBags:
    """Training bags that have a target.

    Attributes:
        bags: Bags, labelled or not.
        targets: Targets of these bags, and possibly of others.
        rows: Row of each bag in the targets.
    """

    bags: MilBags
    targets: BagTargets
    rows: Int64[np.ndarray, " b"]


def select_targeted(bags: MilBags, targets: BagTargets | None) -> TargetedBags | None:
    """Select the training bags that have a target; None if there are none.

    Args:
        bags: Bags of all splits; targets of splits other than train are not used.
    """
    if targets is None:
        return None
    train = bags.of_split("train")
    rows = targets.rows(train.names)
    return TargetedBags(train.select(rows >= 0), targets, rows[rows >= 0]) if (rows >= 0).any() else None


def target_loss(network: MilNetwork, output: MilOutput, targeted: TargetedBags, bag: int) -> Float[Tensor, ""]:
    """Compute the target loss of one bag: the weighted cross-entropy plus the weighted cosine distance.

    The cross-entropy compares the bag's logits with its target probabilities. The cosine distance compares its target
    vector with a linear projection of its representation (`network.target_head`).
    """
    targets, row = targeted.targets, int(targeted.rows[bag])
    loss = torch.zeros((), device=output.logits.device)
    if targets.weights[row] > 0:
        expected = torch.from_numpy(targets.probabilities[row]).to(output.logits)
        entropy = torch.nn.functional.cross_entropy(output.logits, expected)
        loss = loss + targets.label_weight * float(targets.weights[row]) * entropy
    if targets.distilled[row] and network.target_head is not None:
        vector = torch.from_numpy(targets.vectors[row]).to(output.representation)
        cosine = torch.nn.functional.cosine_similarity(network.target_head(output.representation), vector, dim=0)
        loss = loss + targets.vector_weight * (1 - cosine)
    return loss
