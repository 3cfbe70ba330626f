"""Find suspicious labels with confident learning: out-of-fold probabilities of a probe, ranked with cleanlab."""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped

from clipit.errors import DataError, ModelError, counted
from clipit.evaluation.features import Features
from clipit.evaluation.intervals import Estimate, estimate, group_numbers
from clipit.evaluation.metrics import auroc, divide
from clipit.evaluation.probes import linear_probe

INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Candidate inverses of the L2 penalty; one is selected per fold."""


@dataclass(frozen=True)
class OutOfFold:
    """Class probabilities of tiles, predicted by probes that were fitted on other groups.

    Attributes:
        probabilities: Class probabilities, one row per tile.
        folds: Fold of each tile; all tiles of a group are in the same fold.
        checked: Whether the probe of the tile's fold was fitted on tiles of the tile's given class. If not, the
            probability of that class is always 0.
        inverse_penalties: Inverse of the L2 penalty selected for each fold.
    """

    probabilities: Float32[np.ndarray, "n c"]
    folds: Int64[np.ndarray, " n"]
    checked: Bool[np.ndarray, " n"]
    inverse_penalties: tuple[float, ...]


@dataclass(frozen=True)
class LabelIssues:
    """Suspicious labels among n tiles.

    Attributes:
        flagged: Whether the label is suspicious.
        quality: Probability of the given label; the lower, the more suspicious.
        suggested: Most probable class.
        wrong: Estimated fraction of wrong labels among the tiles with each label; NaN for a class without tiles.
    """

    flagged: Bool[np.ndarray, " n"]
    quality: Float64[np.ndarray, " n"]
    suggested: Int64[np.ndarray, " n"]
    wrong: Float64[np.ndarray, " c"]


def out_of_fold_probabilities(features: Features, n_classes: int, *, folds: int = 5, seed: int = 0) -> OutOfFold:
    """Predict the class of each tile with a linear probe that was fitted on the tiles of other groups.

    Groups are divided into folds, stratified by class (scikit-learn's StratifiedGroupKFold); a tile without a group is
    a group of its own. The probe of a fold is a logistic regression on all other folds. Its penalty is the one with the
    lowest log loss on the next fold when the probe is fitted without that fold. Neither the probe nor its penalty
    depends on labels of the tile's own group. The result does not depend on the order of the tiles.

    Args:
        features: Features and labels of the tiles; every tile has a label.
        folds: Number of folds, at least 3.

    Raises:
        DataError: There are fewer groups than folds, every class has fewer tiles than folds, or a probe cannot be
            fitted because only one class remains.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    order = np.argsort(features.ids, kind="stable")
    ordered = features.take(order)
    groups = group_numbers(ordered.groups)
    if folds < 3 or len(np.unique(groups)) < folds:
        raise DataError(
            f"cannot split {counted(len(np.unique(groups)), 'labelled group')} (patients, slides or tiles) into "
            f"{folds} folds",
            where="label_issues.folds",
            fix="use at least 3 folds and no more folds than groups",
        )
    largest = int(np.bincount(ordered.labels).max())
    if largest < folds:  # scikit-learn cannot stratify
        raise DataError(
            f"every class has fewer than {folds} labelled tiles (the largest has {largest})",
            where="label_issues.folds",
            fix=f"label more tiles, or use {largest} folds" if largest >= 3 else "label more tiles",
        )
    fold_of = np.empty(len(order), dtype=np.int64)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # `checked` marks the tiles of such a class
        for fold, (_, inside) in enumerate(splitter.split(ordered.vectors, ordered.labels, groups)):
            fold_of[inside] = fold
    probabilities = np.zeros((len(order), n_classes), dtype=np.float32)
    checked = np.zeros(len(order), dtype=np.bool_)
    inverse_penalties = []
    for fold in range(folds):
        inside = fold_of == fold
        train = ordered.take(~inside)
        inverse_penalty = _choose_penalty(train, fold_of[~inside] == (fold + 1) % folds, n_classes)
        probe = linear_probe(
            train.vectors, train.labels, train.vectors[:0], train.labels[:0], n_classes, (inverse_penalty,)
        )
        probabilities[inside] = probe.probabilities(ordered.vectors[inside])
        checked[inside] = np.isin(ordered.labels[inside], train.labels)
        inverse_penalties.append(inverse_penalty)
    inverse = np.argsort(order)
    return OutOfFold(probabilities[inverse], fold_of[inverse], checked[inverse], tuple(inverse_penalties))


def _choose_penalty(train: Features, held_out: Bool[np.ndarray, " n"], n_classes: int) -> float:
    fitted, validation = train.take(~held_out), train.take(held_out)
    return linear_probe(
        fitted.vectors, fitted.labels, validation.vectors, validation.labels, n_classes, INVERSE_PENALTIES
    ).inverse_penalty


def find_label_issues(labels: Int64[np.ndarray, " n"], probabilities: Float[np.ndarray, "n c"]) -> LabelIssues:
    """Find suspicious labels with confident learning (Northcutt, Jiang and Chuang, JAIR 2021) and cleanlab.

    Labels are flagged by cleanlab's filter `prune_by_noise_rate` and ranked by the probability of the given label.

    Args:
        labels: Given class of each tile, 0 to c - 1.
        probabilities: Out-of-fold class probabilities.

    Raises:
        ModelError: cleanlab is not installed.
        DataError: All tiles have the same label.
    """
    present = np.unique(labels)
    if len(present) < 2:
        raise DataError(
            "all checked tiles have the same label", where="tiles", fix="label tiles of at least two classes"
        )
    try:
        from cleanlab.count import compute_confident_joint, estimate_joint
        from cleanlab.filter import find_label_issues as flag_issues
    except ImportError as error:
        raise ModelError(
            "finding suspicious labels needs the package cleanlab, which is not installed",
            fix="pip install cleanlab",
        ) from error
    codes = np.searchsorted(present, labels)  # cleanlab expects every class among the labels
    shares = probabilities[:, present].astype(np.float64)
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1e-12)
    counts = compute_confident_joint(codes, shares)
    flagged = flag_issues(codes, shares, confident_joint=counts, n_jobs=1)
    joint = estimate_joint(codes, shares, confident_joint=counts)
    wrong = np.full(probabilities.shape[1], np.nan)
    wrong[present] = 1 - np.diagonal(joint) / joint.sum(axis=1)
    rows = np.arange(len(codes))
    suggested = present[shares.argmax(axis=1)].astype(np.int64)
    return LabelIssues(np.asarray(flagged, dtype=np.bool_), shares[rows, codes], suggested, wrong)


def score_ranking(
    wrong: Bool[np.ndarray, " n"],
    flagged: Bool[np.ndarray, " n"],
    quality: Float[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Score flagged labels against verified ones: precision, recall and AUROC, and the fraction of wrong labels.

    The fraction of wrong labels is the precision of flagging tiles at random. Intervals are bootstrapped over groups.

    Args:
        wrong: Whether the given label differs from the verified one.
        flagged: Whether the label was flagged.
        quality: Quality of the given label; it should be lower for wrong labels.
        groups: Group of each tile; "" where unknown.
    """

    def scores(weights: Float[np.ndarray, "n r"]) -> dict[str, Float[np.ndarray, " r"]]:
        total, both = weights.sum(axis=0), (weights * (wrong & flagged)[:, None]).sum(axis=0)
        errors, flags = (weights * wrong[:, None]).sum(axis=0), (weights * flagged[:, None]).sum(axis=0)
        return {
            "share of wrong labels": errors / total,
            "precision of the flagged labels": divide(both, flags),
            "recall of the wrong labels": divide(both, errors),
            "AUROC of the ranking": auroc(wrong.astype(np.int64), np.stack([quality, -quality], axis=1), weights),
        }

    return estimate(scores, groups, resamples, seed)


def rank_issues(issues: LabelIssues, ids: Shaped[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Order tiles: flagged ones before others, both by ascending quality; ties are broken by id."""
    return np.lexsort((ids, issues.quality.round(6), ~issues.flagged)).astype(np.int64)
