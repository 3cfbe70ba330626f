"""Agreement between annotators: Krippendorff's alpha, pairwise agreement, and limits set by their overlap."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from clipit.annotators.votes import Votes, majority
from clipit.errors import counted, counted_of, shortlist

_ROUNDING = 1e-12
FEW_ITEMS = 5
"""Number of tiles below which the estimated confusion matrix of an annotator is listed as uncertain."""


def krippendorff_alpha(
    counts: Int64[np.ndarray, "n c"], weights: Float64[np.ndarray, " n"] | None = None
) -> float | None:
    """Compute Krippendorff's alpha for nominal labels; None if no item has two labels or only one class occurs.

    Formula: alpha = 1 - D_o / D_e with the coincidences o_ck = sum_u m_uc (m_uk - [c = k]) / (m_u - 1) of items with
    m_u >= 2 labels, D_o = 1 - sum_c o_cc / n and D_e = 1 - sum_c n_c (n_c - 1) / (n (n - 1)), where n_c = sum_k o_ck
    (Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011). 1 is perfect agreement, 0 chance agreement.

    Args:
        counts: Number of labels of each class per item.
        weights: Weight of each item; 1 by default.
    """
    per_item = counts.sum(axis=1)
    paired = per_item >= 2
    m = counts[paired].astype(np.float64)
    weight = np.ones(len(m)) if weights is None else weights[paired]
    scale = weight / np.maximum(per_item[paired] - 1.0, 1.0)
    agreeing = float((scale[:, None] * m * (m - 1)).sum())
    class_totals = (weight[:, None] * m).sum(axis=0)
    n = float(class_totals.sum())
    expected = n * (n - 1) - float((class_totals * (class_totals - 1)).sum())
    if n < 2 or expected <= 0:
        return None
    return 1 - (n - 1) * (n - agreeing) / expected


def alpha_interval(
    counts: Int64[np.ndarray, "n c"], groups: Int64[np.ndarray, " n"], resamples: int, seed: int
) -> tuple[float, float] | None:
    """Compute the 95% interval of alpha by bootstrapping groups of items.

    The result is None without resamples, if alpha is undefined in a resample, or if it is the same in all resamples,
    for example because all annotators agree.

    Args:
        counts: Number of labels of each class per item.
        groups: Index of each item's group, such as its patient, from 0.
    """
    n_groups = int(groups.max(initial=-1)) + 1
    if not n_groups or not resamples:
        return None
    generator = np.random.default_rng(seed)
    values: list[float] = []
    for _ in range(resamples):
        drawn = np.bincount(generator.integers(n_groups, size=n_groups), minlength=n_groups).astype(np.float64)
        alpha = krippendorff_alpha(counts, drawn[groups])
        if alpha is None:
            return None
        values.append(alpha)
    low, high = np.quantile(values, [0.025, 0.975])
    return (float(low), float(high)) if high - low > _ROUNDING else None


@dataclass(frozen=True, eq=False)
class PairAgreement:
    """Agreement of each pair of annotators on the items that both labelled.

    Attributes:
        shared: Number of items that both labelled; on the diagonal, those that the annotator labelled.
        agreement: Fraction of shared items with equal labels; NaN if no item is shared.
        kappa: Cohen's kappa; NaN where it is undefined.
    """

    shared: Int64[np.ndarray, "a a"]
    agreement: Float64[np.ndarray, "a a"]
    kappa: Float64[np.ndarray, "a a"]


def pair_agreement(votes: Votes) -> PairAgreement:
    """Compute the agreement of each pair of named annotators."""
    table, a, c = votes.table(), len(votes.annotators), len(votes.classes)
    shared = np.zeros((a, a), dtype=np.int64)
    agreement, kappa = np.full((a, a), np.nan), np.full((a, a), np.nan)
    for i in range(a):
        for j in range(i, a):
            both = (table[:, i] >= 0) & (table[:, j] >= 0)
            shared[i, j] = shared[j, i] = int(both.sum())
            if not shared[i, j]:
                continue
            first, second = table[both, i], table[both, j]
            observed = float((first == second).mean())
            expected = float((np.bincount(first, minlength=c) @ np.bincount(second, minlength=c)) / both.sum() ** 2)
            agreement[i, j] = agreement[j, i] = observed
            if expected < 1:
                kappa[i, j] = kappa[j, i] = (observed - expected) / (1 - expected)
    return PairAgreement(shared, agreement, kappa)


def explain_not_estimable(votes: Votes) -> str:
    """Explain why the skills of annotators cannot be estimated from these labels; "" if they can."""
    per_item = votes.counts().sum(axis=1)
    if not len(votes) or per_item.max() < 2:
        return (
            "no tile has labels from two annotators, so neither their skill nor a consensus can be estimated: "
            "with one label per tile, no error can be detected"
        )
    if votes.named and votes.items_per_annotator().max() < 2:
        return "no annotator labelled more than one tile, so their skill cannot be estimated"
    return ""


def overlap_remarks(votes: Votes) -> list[str]:
    """List limits of the estimates: single labels, at most two labels per tile, unlinked annotators, and few tiles."""
    remarks = []
    per_item = votes.counts().sum(axis=1)
    single = int((per_item == 1).sum())
    if single:
        remarks.append(
            f"{counted_of(single, len(votes), 'annotated tile has', 'annotated tiles have')} only one label, which "
            "says nothing about agreement"
        )
    if len(votes) and per_item.max() == 2:
        remarks.append(
            "no tile has more than two labels: if these differ, the consensus depends only on the estimated confusion "
            "matrices"
        )
    if not votes.named:
        remarks.append("annotators are not named, so one confusion matrix is estimated for all of them")
        if equal := int(majority(votes.counts(), votes.items).tied.sum()):
            remarks.append(
                f"{counted(equal, 'tile has', 'tiles have')} equally many votes for several classes, so their "
                "consensus depends only on the estimated class frequencies and confusion matrix"
            )
        return remarks
    components = _connected_annotators(votes)
    if len(components) > 1:
        listed = [
            " and ".join(component[:3]) + (" and others" if len(component) > 3 else "") for component in components
        ]
        remarks.append(
            f"the annotators form {counted(len(components), 'set')} without a common tile ({shortlist(listed)}), so "
            "their skills are not comparable across sets"
        )
    items = votes.items_per_annotator()
    with_few_items = [f"{name} {n}" for name, n in zip(votes.annotators, items.tolist(), strict=True) if n < FEW_ITEMS]
    if with_few_items:
        remarks.append(
            f"the confusion matrices of annotators with fewer than {FEW_ITEMS} tiles are uncertain: "
            f"{shortlist(with_few_items)}"
        )
    return remarks


def _connected_annotators(votes: Votes) -> list[list[str]]:
    """Return the sets of annotators who are linked by shared items, the largest first."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    a = len(votes.annotators)
    labelled = sparse.csr_array((np.ones(len(votes.item)), (votes.item, votes.annotator)), shape=(len(votes.items), a))
    _, component_of = connected_components(labelled.T @ labelled, directed=False)
    components: dict[int, list[str]] = {}
    for name, component in zip(votes.annotators, component_of.tolist(), strict=True):
        components.setdefault(component, []).append(name)
    return sorted(components.values(), key=lambda component: (-len(component), component))
