"""What the analyses of a comparison have in common: a finding, and hits and gains from the runs' predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from clipit.comparison.plan import Plan
from clipit.evaluation.predictions import Predictions, read_predictions
from clipit.evaluation.score_row import ScoreRow


@dataclass(frozen=True)
class AnalysisResult:
    """One analysis of one data set and backbone, as a table or as points in a plane.

    Attributes:
        heading: What it is about.
        text: How to read it.
        header: Of the table.
        rows: Of the table.
        source: Files and columns that it was computed from.
        planes: Title -> name of the points -> coordinates, for a picture; empty for none.
        values: What the table's cells were rounded from: one row of plain numbers per cell or line, scores and shares
            in 0..1, with the files that they come from.
        ids: Title -> name of the points -> tile or snippet id of each point of `planes`.
        points: File beside the picture that holds its points; "" while they are in memory alone.
    """

    heading: str
    text: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    source: str
    planes: Mapping[str, Mapping[str, Float[np.ndarray, "_ 2"]]]
    values: tuple[Mapping[str, Any], ...] = ()
    ids: Mapping[str, Mapping[str, Shaped[np.ndarray, "_"]]] = field(default_factory=dict)
    points: str = ""


def predictions_of(rows: Sequence[ScoreRow], arm: str, seed: int) -> Path:
    """Return the file of a run's test predictions."""
    return next(row.predictions_file() for row in rows if (row.arm, row.seed, row.part) == (arm, seed, "test"))


def read_test_predictions(rows: Sequence[ScoreRow], arm: str, seed: int) -> Predictions:
    """Read a run's predictions of the test tiles."""
    return read_predictions(predictions_of(rows, arm, seed)).select("test")


def title(plan: Plan, what: str) -> str:
    """A heading that names the data set, and the backbone where there are several."""
    several = len(plan.comparison.backbones) > 1
    return f"{what} ({plan.data_set}, {plan.backbone})" if several else f"{what} ({plan.data_set})"


def hits(rows: Sequence[ScoreRow], arm: str, seed: int) -> tuple[Predictions, Float[np.ndarray, " n"]]:
    """The labelled test tiles by id, and 1.0 where the run is right."""
    found = read_test_predictions(rows, arm, seed).by_id()
    known = found.take(found.labels >= 0)
    return known, (known.probabilities.argmax(axis=1) == known.labels).astype(np.float64)


def gain(plan: Plan, rows: Sequence[ScoreRow], arm: str) -> tuple[Predictions, Float[np.ndarray, " n"], dict[str, Any]]:
    """Hits of an arm minus hits of the baseline per labelled test tile, mean over seeds; and the files of both."""
    c = plan.comparison
    gains = []
    for seed in c.seeds:
        tiles, base = hits(rows, c.baseline, seed)
        gains.append(hits(rows, arm, seed)[1] - base)
    files = {
        "seeds": list(c.seeds),
        "predictions": [str(predictions_of(rows, arm, seed)) for seed in c.seeds],
        "baseline": [str(predictions_of(rows, c.baseline, seed)) for seed in c.seeds],
    }
    return tiles, np.mean(gains, axis=0), files
