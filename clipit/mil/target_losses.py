"""Losses for bags with targets: cross-entropy with soft labels, and cosine distance to a target vector."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from clipit.mil.mil_bags import MilBags
from clipit.mil.network import MilNetwork, MilOutput
from clipit.mil.targets import BagTargets


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
