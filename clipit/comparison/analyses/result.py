"""Results of analyses, and per-tile hits and gains that several analyses use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from clipit.comparison.plan import Plan
from clipit.evaluation.predictions import Predictions, read_predictions
from clipit.evaluation.score_row import ScoreRow


@dataclass(frozen=True, kw_only=True)
class AnalysisResult:
    """Result of one analysis for one data set and backbone: a table and, optionally, points for a scatter plot.

    Attributes:
        heading: Heading of the section.
        text: Explanation shown above the table.
        source: Files and columns from which the figures are computed.
        planes: Coordinates by panel title and name of the points.
        values: Unrounded values behind the cells, one record per cell or row; scores and fractions in 0..1.
        ids: Tile or snippet id of each point of `planes`, by panel title and name of the points.
        points: Name of the file with the points; "" if they are not written.
    """

    heading: str
    text: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    source: str
    planes: Mapping[str, Mapping[str, Float[np.ndarray, "_ 2"]]] = field(default_factory=dict)
    values: tuple[Mapping[str, Any], ...] = ()
    ids: Mapping[str, Mapping[str, Shaped[np.ndarray, "_"]]] = field(default_factory=dict)
    points: str = ""


def heading(plan: Plan, text: str) -> str:
    """Append the data set to a heading, and the backbone if the comparison has several."""
    several = len(plan.comparison.backbones) > 1
    return f"{text} ({plan.data_set}, {plan.backbone})" if several else f"{text} ({plan.data_set})"


def predictions_file(rows: Sequence[ScoreRow], arm: str, seed: int) -> Path:
    """Return the path of a run's test predictions."""
    return _test_row(rows, arm, seed).predictions_file()


def _test_row(rows: Sequence[ScoreRow], arm: str, seed: int) -> ScoreRow:
    return next(row for row in rows if (row.arm, row.seed, row.test_set) == (arm, seed, "test"))


def read_test_predictions(rows: Sequence[ScoreRow], arm: str, seed: int) -> Predictions:
    """Read a run's predictions for the test tiles."""
    row = _test_row(rows, arm, seed)
    return read_predictions(row.predictions_file(), row.predictions_sha256).select("test")


def compute_hits(rows: Sequence[ScoreRow], arm: str, seed: int) -> tuple[Predictions, Float[np.ndarray, " n"]]:
    """Return the labelled test tiles, sorted by id, with 1.0 for each correctly classified tile and 0.0 for others."""
    predictions = read_test_predictions(rows, arm, seed).by_id()
    labelled = predictions.take(predictions.labels >= 0)
    return labelled, (labelled.probabilities.argmax(axis=1) == labelled.labels).astype(np.float64)


def compute_gain(plan: Plan, rows: Sequence[ScoreRow], arm: str) -> tuple[Float[np.ndarray, " n"], dict[str, Any]]:
    """Compute an arm's hits minus the baseline's for each labelled test tile, averaged over seeds.

    Returns:
        The gains, sorted by tile id, and the seeds and files that they were computed from.
    """
    seeds, baseline = plan.comparison.seeds, plan.comparison.baseline
    gains = [compute_hits(rows, arm, seed)[1] - compute_hits(rows, baseline, seed)[1] for seed in seeds]
    files = {
        "seeds": list(seeds),
        "predictions": [str(predictions_file(rows, arm, seed)) for seed in seeds],
        "baseline": [str(predictions_file(rows, baseline, seed)) for seed in seeds],
    }
    return np.mean(gains, axis=0), files
