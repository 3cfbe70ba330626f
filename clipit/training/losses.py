"""Loss functions, and the transformations of their inputs, as pure functions on tensors.

Each loss is a sum over its valid rows. The training step divides it by the number of valid rows in the whole batch,
over all processes and micro-batches, so that the result does not depend on how the batch is divided.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

NO_LABEL = -1


def cross_entropy_sum(
    logits: Float[Tensor, "b c"], labels: Int64[Tensor, " b"], label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Compute the sum of cross-entropies over the labelled rows.

    Formula: L_CE = sum over labelled i of -sum_c q_ic log softmax(logits_i)_c, where q_i is the one-hot label mixed
    with the uniform distribution: q = (1 - s) onehot + s / C (label smoothing s, arXiv 1512.00567, section 7).

    Args:
        logits: Logits, one row per tile.
        labels: Class indices; rows with `NO_LABEL` are ignored.

    Returns:
        The sum in float32 (float64 for float64 logits); 0 with a zero gradient if no row is labelled.
    """
    return functional.cross_entropy(
        at_least_float32(logits), labels, ignore_index=NO_LABEL, reduction="sum", label_smoothing=label_smoothing
    )


def cosine_distillation_sum(
    predicted: Float[Tensor, "b d"], target: Float[Tensor, "b d"], valid: Bool[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Compute the sum of cosine distances between predicted and target embeddings over the valid rows.

    Formula: L_KD = sum over valid i of 1 - cos(t^_i, t_i) (CLIP-IT, arXiv 2504.16181, distillation step). Each summand
    is between 0 and 2. Vectors need not be normalised; a zero vector counts as orthogonal (distance 1).

    Args:
        predicted: Projector outputs t^.
        target: Targets t, without gradient. Invalid rows may contain any value, including NaN.
        valid: Mask of the rows to sum over.

    Returns:
        The sum in float32 (float64 for float64 input); 0 with a zero gradient if no row is valid.
    """
    similarity = functional.cosine_similarity(
        at_least_float32(predicted[valid]), at_least_float32(target[valid]), dim=1
    )
    return (1.0 - similarity).sum()


def soft_cross_entropy_sum(
    logits: Float[Tensor, "b c"], target: Float[Tensor, "b c"], weights: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Compute the weighted sum of cross-entropies against distributions over the classes.

    Formula: sum over i of -w_i sum_c q_ic log softmax(logits_i)_c (soft targets: Hinton et al. 2015,
    arXiv 1503.02531, section 2). It equals `cross_entropy_sum` for one-hot targets and weights of 1.

    Args:
        logits: Logits, one row per tile.
        target: Target distributions q, whose rows sum to 1, without gradient.
        weights: Non-negative weights w. Rows with weight 0 may contain any value, including NaN.

    Returns:
        The sum in float32 (float64 for float64 logits); 0 with a zero gradient if every weight is 0.
    """
    counted = weights > 0
    log_p = functional.log_softmax(at_least_float32(logits[counted]), dim=1)
    return -(weights[counted].to(log_p.dtype) * (target[counted].to(log_p.dtype) * log_p).sum(dim=1)).sum()


def smooth_labels(target: Float[Tensor, "b c"], label_smoothing: float) -> Float[Tensor, "b c"]:
    """Mix distributions with the uniform distribution, as `cross_entropy_sum` does with labels.

    Formula: (1 - s) q_c + s / C (Szegedy et al. 2016, arXiv 1512.00567, section 7).

    Args:
        target: Target distributions q, whose rows sum to 1.
    """
    return (1 - label_smoothing) * target + label_smoothing / target.shape[1]


def prototype_logits(
    projected: Float[Tensor, "b d"], prototypes: Float[Tensor, "c d"], temperature: float | Float[Tensor, ""]
) -> Float[Tensor, "b c"]:
    """Compute scaled cosines between projections and class prompts, as logits.

    Formula: cos(t^_i, p_c) / temperature (zero-shot classification of CLIP, arXiv 2103.00020, section 3.1.2).

    Args:
        projected: Projector outputs t^, not necessarily normalised.
        prototypes: Class prototypes p, each the mean of the class's prompt embeddings.
        temperature: Positive temperature.
    """
    directions = functional.normalize(at_least_float32(projected), dim=1)
    return directions @ functional.normalize(prototypes.to(directions.dtype), dim=1).T / temperature


def sharpen(probabilities: Float[Tensor, "b c"], temperature: float) -> Float[Tensor, "b c"]:
    """Sharpen (temperature below 1) or soften (above 1) probabilities.

    Formula: p_c^(1/T) / sum over k of p_k^(1/T) (MixMatch, arXiv 1905.02249, equation 7).
    """
    return torch.softmax(torch.log(at_least_float32(probabilities)) / temperature, dim=1)


def correct_prior(
    probabilities: Float[Tensor, "b c"], prior: Float[Tensor, " c"], strength: float = 1.0
) -> Float[Tensor, "b c"]:
    """Correct probabilities for the model's bias towards some classes.

    Formula: (p_c / pi_c^s) / sum over k of (p_k / pi_k^s): Bayes' rule with the model's prior pi replaced by a uniform
    one (Saerens et al. 2002, Neural Computation 14(1), equation 4); s = 0 leaves p unchanged.

    Args:
        prior: Prior pi: mean class probabilities over *training* tiles; values below 1e-12 count as 1e-12.
        strength: Strength s, between 0 and 1.
    """
    divisor = prior.to(torch.promote_types(probabilities.dtype, torch.float32)).clamp(min=1e-12) ** strength
    corrected = at_least_float32(probabilities) / divisor
    return corrected / corrected.sum(dim=1, keepdim=True)


def consistency_sum(
    logits_a: Float[Tensor, "b c"], logits_b: Float[Tensor, "b c"], mask: Bool[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Compute the sum of squared distances between the class probabilities of two views, over the selected rows.

    Formula: sum over selected i of (1 / C) sum_c (softmax(a_i)_c - softmax(b_i)_c)^2 (Pi-model, arXiv 1610.02242,
    section 2.1). It is bounded and symmetric, and the gradient reaches both views.

    Args:
        logits_a: Logits of one view.
        logits_b: Logits of the other view, with the tiles in the same order.
        mask: Mask of the rows to sum over; other rows may contain any value.

    Returns:
        The sum in float32 (float64 for float64 logits); 0 with a zero gradient if no row is selected.
    """
    first = torch.softmax(at_least_float32(logits_a[mask]), dim=1)
    second = torch.softmax(at_least_float32(logits_b[mask]), dim=1)
    return (first - second).square().mean(dim=1).sum()


def many_to_many_sum(
    images: Float[Tensor, "b m d"],
    image_mask: Bool[Tensor, "b m"],
    texts: Float[Tensor, "b n d"],
    text_mask: Bool[Tensor, "b n"],
    temperature: float | Float[Tensor, ""],
    rows: slice | None = None,
    *,
    same: Bool[Tensor, "b b"] | None = None,
    text_weights: Float[Tensor, "b n"] | None = None,
) -> tuple[Float[Tensor, ""], int]:
    """Contrast tile bags with text bags in both directions.

    Formula: with unit vectors u_im of tile bag i (M_i members) and v_jn of text bag j (N_j members),
    S_ij = log( 1 / (M_i N_j) sum over m, n of exp(u_im . v_jn / temperature) ) and
    L = sum over i of -1/2 (log softmax over j of S_ij, at j = i, plus log softmax over k of S_ki, at k = i).
    Adapted from CPLIP (CVPR 2024). CPLIP contrasts in one direction only, and favours large bags because it sums over
    members instead of averaging. With one member per bag, L is CLIP's loss (arXiv 2103.00020, figure 3) times b.
    Two tiles in a batch with the same snippets are each other's negatives, as in CLIP, unless `same` is given: both
    softmaxes of bag i then exclude every j for which same_ij is true. With `text_weights` w, which are normalised to
    sum to 1 in each bag, S_ij = log( 1 / M_i sum over m, n of w_jn exp(u_im . v_jn / temperature) ).

    Args:
        images: Members of the tile bags, not necessarily normalised.
        image_mask: Mask of the existing members; the others may contain any value.
        texts: Members of the text bags; row i belongs to tile bag i.
        text_mask: Mask of the existing members.
        temperature: Positive temperature; a tensor if it is learnt.
        rows: Bags to sum over, each contrasted with all bags; by default, all. If bags are gathered from all processes
            (with gradient), each process sums over its own rows, and the sums and counts of the processes add up.
        same: True where bag j is not a negative of bag i; the diagonal is ignored. By default, all other bags are
            negatives.
        text_weights: Non-negative weights, equal by default; members with weight 0 are ignored.

    Returns:
        The sum (float32, or float64 for float64 input; 0 with a zero gradient if there is no bag to sum over), and the
        number of bags summed over. Bags that are empty on either side are excluded, even as negatives; a bag without
        negatives adds 0.
    """
    if text_weights is not None:
        text_mask = text_mask & (text_weights > 0)
    usable = image_mask.any(dim=1) & text_mask.any(dim=1)
    selected = torch.zeros_like(usable)
    selected[rows if rows is not None else slice(None)] = True
    summed = torch.nonzero(selected[usable])[:, 0]
    u = _members(images[usable], image_mask[usable], None)
    v = _members(texts[usable], text_mask[usable], None if text_weights is None else text_weights[usable])
    to_texts = _bag_scores(u.select(summed), v, temperature)
    to_images = _bag_scores(v.select(summed), u, temperature)
    if same is not None:
        excluded = same[usable][:, usable].fill_diagonal_(False)[summed]
        to_texts = to_texts.masked_fill(excluded, -torch.inf)
        to_images = to_images.masked_fill(excluded, -torch.inf)
    loss = functional.cross_entropy(to_texts, summed, reduction="sum")
    loss = (loss + functional.cross_entropy(to_images, summed, reduction="sum")) / 2
    return loss, len(summed)


@dataclass(frozen=True)
class _Members:
    """Unit vectors of bag members, their mask, and log(weight / mean weight) unless all weights are equal."""

    vectors: Float[Tensor, "b m d"]
    mask: Bool[Tensor, "b m"]
    weights: Float[Tensor, "b m"] | None

    def select(self, rows: Int64[Tensor, " c"]) -> "_Members":
        return _Members(self.vectors[rows], self.mask[rows], None if self.weights is None else self.weights[rows])


def _members(
    vectors: Float[Tensor, "b m d"], mask: Bool[Tensor, "b m"], weights: Float[Tensor, "b m"] | None
) -> _Members:
    """Normalise members, and replace missing members with zeros, so that their values have no effect."""
    clean = torch.where(mask[:, :, None], at_least_float32(vectors), torch.zeros((), device=vectors.device))
    if weights is not None:
        existing = torch.where(mask, weights.to(clean.dtype), 0.0)
        mean = existing.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
        weights = torch.where(mask, existing / mean, 1.0).log()
    return _Members(functional.normalize(clean, dim=2), mask, weights)


def _bag_scores(first: _Members, second: _Members, temperature: float | Float[Tensor, ""]) -> Float[Tensor, "b c"]:
    """Compute S of `many_to_many_sum`: log-mean-exp over all pairs of members of two bags."""
    scores = torch.einsum("bmd,cnd->bcmn", first.vectors, second.vectors) / temperature
    if first.weights is not None:
        scores = scores + first.weights[:, None, :, None]
    if second.weights is not None:
        scores = scores + second.weights[None, :, None, :]
    both_exist = first.mask[:, None, :, None] & second.mask[None, :, None, :]
    total = scores.masked_fill(~both_exist, -torch.inf).flatten(2).logsumexp(dim=2)
    return total - first.mask.sum(dim=1).log()[:, None] - second.mask.sum(dim=1).log()[None, :]


def at_least_float32(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert half precision to float32, and leave float64 unchanged."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
