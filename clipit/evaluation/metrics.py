"""Classification metrics, vectorised over columns of tile weights, one column per bootstrap resample.

Undefined scores, such as the recall of a class without tiles, are NaN here and None, with a reason, in the results.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int64

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "auroc", "kappa", "ece")
CLASS_AVERAGED = ("balanced_accuracy", "macro_f1")
ECE_BINS = 15


def confusion_matrix(
    labels: Int64[np.ndarray, " n"], predicted: Int64[np.ndarray, " n"], n_classes: int
) -> Int64[np.ndarray, "c c"]:
    """Count tiles by true class (row) and predicted class (column)."""
    cells = np.bincount(labels * n_classes + predicted, minlength=n_classes * n_classes)
    return cells.astype(np.int64).reshape(n_classes, n_classes)


def count_scores(
    hits: Float[np.ndarray, "r c"], true: Float[np.ndarray, "r c"], predicted: Float[np.ndarray, "r c"]
) -> dict[str, Float[np.ndarray, " r"]]:
    """Compute all scores that depend only on the confusion matrix, for each of r weightings.

    accuracy: share on the diagonal. balanced_accuracy: mean recall over classes that have tiles. macro_f1: mean F1
    over classes that have tiles. weighted_f1: mean F1 weighted by number of tiles. kappa: Cohen's kappa, unweighted,
    (p_observed - p_expected) / (1 - p_expected). Definitions follow scikit-learn, except that its macro F1 also covers
    classes that are only predicted, so one prediction can change the number of classes.

    Args:
        hits: Weight of the correctly classified tiles of each class (diagonal of the matrix).
        true: Weight of the tiles of each class (row sums).
        predicted: Weight of the tiles predicted as each class (column sums).
    """
    total = true.sum(axis=1)
    recall, f1 = divide(hits, true), divide(2 * hits, true + predicted)
    observed = divide(hits.sum(axis=1), total)
    expected = divide((true * predicted).sum(axis=1), total**2)
    return {
        "accuracy": observed,
        "balanced_accuracy": mean_defined(recall),
        "macro_f1": mean_defined(np.where(true > 0, f1, np.nan)),
        "weighted_f1": divide(np.nansum(f1 * true, axis=1), total),
        "kappa": divide(observed - expected, 1 - expected),
    }


def auroc(
    labels: Int64[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n c"],
    weights: Float[np.ndarray, "n r"],
    *,
    present_only: bool = False,
) -> Float[np.ndarray, " r"]:
    """Compute the AUROC: of the second class if there are two classes, otherwise the one-vs-rest macro mean.

    With `present_only`, the macro mean is taken over the classes that have tiles.

    The area is the weighted fraction of pairs (tile of the class, other tile) in which the first has the higher
    probability; ties count half (Mann-Whitney). NaN where a class, or its complement, has no weight. Equals
    scikit-learn's `roc_auc_score`, but computes all resamples at once.
    """
    n_classes = probabilities.shape[1]
    positives = [1] if n_classes == 2 else range(n_classes)
    if present_only and n_classes > 2:
        positives = np.unique(labels).tolist()
    if not positives:
        return np.full(weights.shape[1], np.nan)
    areas = [_area(labels == c, probabilities[:, c], weights) for c in positives]
    mean: Float[np.ndarray, " r"] = np.mean(areas, axis=0)
    return mean


def expected_calibration_error(
    labels: Int64[np.ndarray, " n"], probabilities: Float[np.ndarray, "n c"], weights: Float[np.ndarray, "n r"]
) -> Float[np.ndarray, " r"]:
    """Compute the expected calibration error of the top class over `ECE_BINS` equal-width bins.

    arXiv 1706.04599, equation 3:
    sum over bins of fraction of tiles * |accuracy - mean confidence|; a bin covers confidences in (low, high].
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    gap = _bin_members(confidence).T @ (weights * (correct - confidence.astype(np.float64))[:, None])
    return divide(np.abs(gap).sum(axis=0), weights.sum(axis=0))


def weighted_scores(
    labels: Int64[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n c"],
    weights: Float[np.ndarray, "n r"],
    names: Sequence[str] = METRICS,
    *,
    present_only: bool = False,
) -> dict[str, Float[np.ndarray, " r"]]:
    """Compute scores for each of r weightings of n labelled tiles.

    Args:
        weights: Number of times each tile is drawn, one column per resample.
        names: Names of the metrics, from `METRICS`.
        present_only: Whether to average AUROC, like balanced accuracy and macro F1, over the classes that have tiles.

    Returns:
        Scores by metric, one per weighting; NaN where undefined.
    """
    n_classes, predicted = probabilities.shape[1], probabilities.argmax(axis=1)
    true = _class_totals(labels, weights, n_classes)
    hits = _class_totals(labels, weights * (predicted == labels)[:, None], n_classes)
    guessed = _class_totals(predicted, weights, n_classes)
    scores = count_scores(hits, true, guessed)
    # A resample without one of the classes is averaged over fewer classes, which is a different score.
    present = np.bincount(labels, minlength=n_classes) > 0
    incomplete = ((true == 0) & present).any(axis=1)
    for name in CLASS_AVERAGED:
        scores[name] = np.where(incomplete, np.nan, scores[name])
    if "auroc" in names:
        scores["auroc"] = auroc(labels, probabilities, weights, present_only=present_only)
    if "ece" in names:
        scores["ece"] = expected_calibration_error(labels, probabilities, weights)
    return {name: scores[name] for name in names}


def compute_metrics(
    labels: Int64[np.ndarray, " n"], probabilities: Float[np.ndarray, "n c"], *, present_only: bool = False
) -> dict[str, float | None]:
    """Compute all `METRICS` on n labelled tiles; None where undefined (see `explain_undefined`)."""
    scores = weighted_scores(labels, probabilities, np.ones((len(labels), 1)), present_only=present_only)
    return {name: float(value[0]) if np.isfinite(value[0]) else None for name, value in scores.items()}


def explain_undefined(
    name: str, labels: Int64[np.ndarray, " n"], classes: tuple[str, ...], *, unit: str = "tile"
) -> str:
    """Return the reason why a score is undefined for tiles (or other units, named by `unit`) with these labels."""
    if not len(labels):
        return f"no labelled {unit}"
    absent = [classes[c] for c in range(len(classes)) if not (labels == c).any()]
    if name == "auroc" and absent:
        return f"no {unit} of class {', '.join(absent)}"
    return f"all {unit}s and all predictions have the same class"


def describe_averaging(
    name: str, labels: Int64[np.ndarray, " n"], classes: tuple[str, ...], *, unit: str = "tile"
) -> str:
    """State how many classes a class-averaged score covers; "" for other scores, or if every class has a tile."""
    absent = [classes[c] for c in range(len(classes)) if not (labels == c).any()]
    if name not in (*CLASS_AVERAGED, "weighted_f1", "auroc") or not absent or not len(labels):
        return ""
    return f"over {len(classes) - len(absent)} of {len(classes)} classes; no {unit} of {', '.join(absent)}"


def describe_coverage(labels: Int64[np.ndarray, " n"], classes: tuple[str, ...], where: str) -> str:
    """State which classes the scores of several models on these tiles cover; "" if every class has a tile.

    Args:
        labels: Labels of the tiles; -1 for unlabelled tiles.
        where: The tiles, such as `the test split`.
    """
    absent = [classes[c] for c in range(len(classes)) if not (labels == c).any()]
    if not absent or len(absent) == len(classes):
        return ""
    return (
        f"No tile of {where} has the class {' or '.join(absent)}: balanced accuracy and F1 are averaged over the other "
        f"{len(classes) - len(absent)} of {len(classes)} classes."
    )


def class_table(
    confusion: Int64[np.ndarray, "c c"], classes: tuple[str, ...]
) -> list[dict[str, str | int | float | None]]:
    """Compute precision, recall, F1 and number of tiles (support) per class; None where undefined."""
    hits, true, predicted = np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    columns = {
        "precision": divide(hits, predicted),
        "recall": divide(hits, true),
        "f1": divide(2 * hits, true + predicted),
    }
    return [
        {"class": name}
        | {key: float(values[c]) if np.isfinite(values[c]) else None for key, values in columns.items()}
        | {"support": int(true[c])}
        for c, name in enumerate(classes)
    ]


def reliability_bins(
    labels: Int64[np.ndarray, " n"], probabilities: Float[np.ndarray, "n c"]
) -> list[dict[str, int | float | None]]:
    """Return bounds, number of tiles, accuracy and mean confidence of each bin of `expected_calibration_error`."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    members = _bin_members(confidence)
    counts = members.sum(axis=0)
    accuracy, mean_confidence = divide(members.T @ correct, counts), divide(members.T @ confidence, counts)
    return [
        {
            "low": b / ECE_BINS,
            "high": (b + 1) / ECE_BINS,
            "n": int(counts[b]),
            "accuracy": float(accuracy[b]) if counts[b] else None,
            "confidence": float(mean_confidence[b]) if counts[b] else None,
        }
        for b in range(ECE_BINS)
    ]


def _class_totals(
    classes: Int64[np.ndarray, " n"], weights: Float[np.ndarray, "n r"], n_classes: int
) -> Float[np.ndarray, "r c"]:
    """Add up the weights of the tiles of each class, for each of r weightings."""
    totals: Float[np.ndarray, "r c"] = np.empty((weights.shape[1], n_classes))
    for row, weight in enumerate(np.ascontiguousarray(weights.T)):
        totals[row] = np.bincount(classes, weight, minlength=n_classes)
    return totals


def _bin_members(confidence: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n bins"]:
    number = np.clip(np.ceil(confidence.astype(np.float64) * ECE_BINS) - 1, 0, ECE_BINS - 1)
    members: Float[np.ndarray, "n bins"] = (number[:, None] == np.arange(ECE_BINS)).astype(np.float64)
    return members


def _area(
    positive: Bool[np.ndarray, " n"], score: Float[np.ndarray, " n"], weights: Float[np.ndarray, "n r"]
) -> Float[np.ndarray, " r"]:
    rest = np.flatnonzero(~positive)
    rest = rest[np.argsort(score[rest], kind="stable")]
    below = np.concatenate([np.zeros((1, weights.shape[1])), np.cumsum(weights[rest], axis=0)])
    first = np.searchsorted(score[rest], score[positive], side="left")
    last = np.searchsorted(score[rest], score[positive], side="right")
    weight = weights[positive]
    won = (weight * (below[first] + below[last])).sum(axis=0) / 2
    return divide(won, weight.sum(axis=0) * below[-1])


def divide(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Divide element by element; NaN where the divisor is 0."""
    quotient: np.ndarray = np.full(np.broadcast_shapes(np.shape(top), np.shape(bottom)), np.nan)
    np.divide(top, bottom, out=quotient, where=np.asarray(bottom) != 0)
    return quotient


def mean_defined(values: Float[np.ndarray, "r c"]) -> Float[np.ndarray, " r"]:
    """Return the mean of the defined values of each row; NaN if there are none."""
    defined = np.isfinite(values)
    return divide(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1))
