"""Gain in recall per class."""

from collections.abc import Sequence
from pathlib import Path

from clipit.comparison.analyses.result import AnalysisResult, compute_gain, compute_hits, heading
from clipit.comparison.plan import Plan
from clipit.comparison.statistics import PERCENT
from clipit.evaluation.score_row import ScoreRow
from clipit.reporting.tables import number
from clipit.workspace.workspace import Workspace


def analyse_class_gains(
    plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow], folder: Path
) -> list[AnalysisResult]:
    """Compute the difference in recall between each arm and the baseline for each class."""
    c, classes = plan.comparison, workspace.all_tiles.classes
    labels = compute_hits(rows, c.baseline, c.seeds[0])[0].labels
    counts = [int((labels == k).sum()) for k in range(len(classes))]
    table, values = [], []
    for arm in plan.arms:
        if arm == c.baseline:
            continue
        gains, files = compute_gain(plan, rows, arm)
        recall = [float(gains[labels == k].mean()) if counts[k] else None for k in range(len(classes))]
        table.append((arm, *("no tiles" if g is None else number(PERCENT * g, 1, signed=True) for g in recall)))
        values += [
            {"arm": arm, "class": name, "tiles": counts[k], "gain": recall[k], **files}
            for k, name in enumerate(classes)
        ]
    return [
        AnalysisResult(
            heading=heading(plan, "Gain by class"),
            text=f"Difference in recall from {c.baseline} on the test split, in points, mean over seeds. "
            "Exploratory: there are no intervals, and the largest of many differences may be due to chance.",
            header=("arm", *(f"{name} ({count})" for name, count in zip(classes, counts, strict=True))),
            rows=tuple(table),
            source="predictions.parquet of the runs",
            values=tuple(values),
        )
    ]
