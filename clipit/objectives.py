"""The terms of the loss: pure functions on tensors, one formula each.

Each returns a sum over its valid rows. The training loop divides by the number of valid rows of the whole batch,
over all processes and micro-batches, so that a step does not depend on how its batch was divided.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

NO_LABEL = -1


def cross_entropy_sum(
    logits: Float[Tensor, "b c"], labels: Int64[Tensor, " b"], label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Cross-entropy of the labelled rows, summed.

    Formula: L_CE = sum over labelled i of -sum_c q_ic log softmax(logits_i)_c, where q_i is the one-hot label mixed
    with the uniform distribution: q = (1 - s) onehot + s / C (label smoothing s, arXiv 1512.00567, section 7).

    Args:
        logits: One row per tile; never soft-maxed ones.
        labels: Class numbers; rows with `NO_LABEL` count nothing.
        label_smoothing: s.

    Returns:
        The sum in float32 (float64 for float64 logits); 0 with a gradient of 0 when no row is labelled.
    """
    return functional.cross_entropy(
        _at_least_float32(logits), labels, ignore_index=NO_LABEL, reduction="sum", label_smoothing=label_smoothing
    )


def cosine_distillation_sum(
    predicted: Float[Tensor, "b d"], target: Float[Tensor, "b d"], valid: Bool[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Distance between the predicted and the paired text's embedding, summed over the valid rows.

    Formula: L_KD = sum over valid i of 1 - cos(t^_i, t_i) (CLIP-IT, arXiv 2504.16181, distillation step). Each row
    lies between 0 and 2; lengths do not matter, and a target of length 0 counts as orthogonal (1).

    Args:
        predicted: t^, the projector's output.
        target: t, frozen and cached. Rows that are not valid may hold anything, also NaN.
        valid: Rows that are distilled.

    Returns:
        The sum in float32 (float64 for float64 input); 0 with a gradient of 0 when no row is valid.
    """
    similarity = functional.cosine_similarity(
        _at_least_float32(predicted[valid]), _at_least_float32(target[valid]), dim=1
    )
    return (1.0 - similarity).sum()


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
