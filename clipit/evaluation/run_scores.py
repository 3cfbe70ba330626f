"""Compute every reported score of a run from its predictions table."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from clipit.errors import DataError
from clipit.evaluation.intervals import LEVEL, bootstrap_intervals
from clipit.evaluation.metrics import (
    ECE_BINS,
    class_table,
    compute_metrics,
    confusion_matrix,
    describe_averaging,
    explain_undefined,
    reliability_bins,
)
from clipit.evaluation.predictions import Predictions


def evaluate_predictions(
    predictions: Predictions,
    splits: Sequence[str],
    bootstrap: int = 1000,
    seed: int = 0,
    *,
    present_only: bool = False,
) -> dict[str, Any]:
    """Compute the scores of each split, in the format of results.json.

    Per split: `n` (number of tiles), `labelled` (those with a label), `groups` (number of known groups), `resampled`
    (number and kind of the resampling units), `metrics` (by name: `value`, `low`, `high`, `reason` if any of the three
    is None, and `over` if an average covers only some of the classes), `per_class`, `confusion` (rows: true classes),
    `reliability`, and, if there are zero-shot predictions, `zero_shot` with their scores. Scores are computed on
    labelled tiles.

    Args:
        predictions: Predictions of all splits.
        splits: Names of the splits to evaluate, in the order of the results.
        bootstrap: Number of resamples; 0 for no intervals.
        seed: Seed for the bootstrap.
        present_only: Whether to average AUROC only over the classes that have tiles. Otherwise it is undefined if a
            class has no tiles.

    Raises:
        DataError: The table has no tiles for one of the splits.
    """
    predictions = predictions.by_id()
    known = sorted(set(predictions.splits.tolist()))
    missing = [split for split in splits if split not in known]
    if missing:
        raise DataError(
            f"no predictions for split {', '.join(missing)}",
            where="evaluation.splits",
            fix=f"predict this split or remove it; the predictions cover: {', '.join(known) or 'no split'}",
        )
    return {
        "classes": list(predictions.classes),
        "protocol": {
            "interval": f"{LEVEL:.0%} percentile bootstrap" if bootstrap else "none",
            "resamples": bootstrap,
            "seed": seed,
            "auroc": f"binary, positive class {predictions.classes[-1]}"
            if len(predictions.classes) == 2
            else "one-vs-rest macro mean" + (", over classes with tiles" if present_only else ""),
            "ece": f"top class, {ECE_BINS} equal-width bins",
        },
        "splits": {split: _split_results(predictions.select(split), bootstrap, seed, present_only) for split in splits},
    }


def _split_results(predictions: Predictions, bootstrap: int, seed: int, present_only: bool) -> dict[str, Any]:
    labelled = predictions.labels >= 0
    groups = predictions.patients[labelled]
    n_known, n_alone = len(np.unique(groups[groups != ""])), int((groups == "").sum())
    units = ((n_known, "groups"), (n_alone, "tiles"))
    results: dict[str, Any] = {
        "n": len(predictions.ids),
        "labelled": int(labelled.sum()),
        "groups": n_known,
        "resampled": " and ".join(f"{n} {name}" for n, name in units if n) or "0 tiles",
    }
    results |= _scores(predictions, predictions.probabilities, bootstrap, seed, present_only)
    if predictions.zero_shot is not None:
        results["zero_shot"] = _scores(predictions, predictions.zero_shot, bootstrap, seed, present_only)
    return results


def _scores(
    predictions: Predictions, probabilities: Float32[np.ndarray, "n c"], bootstrap: int, seed: int, present_only: bool
) -> dict[str, Any]:
    rows = predictions.labels >= 0
    labels, probabilities = predictions.labels[rows], probabilities[rows]
    groups = predictions.patients[rows]
    intervals = bootstrap_intervals(labels, probabilities, groups, bootstrap, seed, present_only=present_only)
    predicted = probabilities.argmax(axis=1)
    metrics: dict[str, dict[str, Any]] = {}
    for name, value in compute_metrics(labels, probabilities, present_only=present_only).items():
        interval = intervals[name]
        metrics[name] = {"value": value, "low": interval.low, "high": interval.high}
        reason = explain_undefined(name, labels, predictions.classes) if value is None else interval.reason
        if reason:
            metrics[name]["reason"] = reason
        over = describe_averaging(name, labels, predictions.classes)
        if over and value is not None:
            metrics[name]["over"] = over
    confusion = confusion_matrix(labels, predicted, len(predictions.classes))
    return {
        "metrics": metrics,
        "per_class": class_table(confusion, predictions.classes),
        "confusion": confusion.tolist(),
        "reliability": reliability_bins(labels, probabilities),
    }
