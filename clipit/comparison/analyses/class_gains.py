"""Clipit/comparison/analyses/class_gains.py."""

from collections.abc import Sequence
from pathlib import Path

from clipit.comparison.analyses.result import AnalysisResult, gain, hits, title
from clipit.comparison.plan import Plan
from clipit.comparison.statistics import PERCENT
from clipit.evaluation.score_row import ScoreRow
from clipit.reporting.tables import number
from clipit.workspace.workspace import Workspace


def _by_class(plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow], folder: Path) -> list[AnalysisResult]:
    """Difference in recall per class."""
    c, classes = plan.comparison, workspace.all_tiles.classes
    counted = hits(rows, c.baseline, c.seeds[0])[0].labels
    counts = [int((counted == k).sum()) for k in range(len(classes))]
    table, values = [], []
    for arm in plan.arms:
        if arm != c.baseline:
            tiles, gains, files = gain(plan, rows, arm)
            of_class = [float(gains[tiles.labels == k].mean()) if counts[k] else None for k in range(len(classes))]
            table.append((arm, *("no tile" if g is None else number(PERCENT * g, 1, signed=True) for g in of_class)))
            values += [
                {"arm": arm, "class": name, "tiles": counts[k], "gain": of_class[k], **files}
                for k, name in enumerate(classes)
            ]
    return [
        AnalysisResult(
            title(plan, "Gain by class"),
            f"Recall against {c.baseline} in points, mean over seeds, test split. Exploratory: no intervals, and the "
            "largest of many differences is large by chance.",
            ("arm", *(f"{name} ({count})" for name, count in zip(classes, counts, strict=True))),
            tuple(table),
            "predictions.parquet of the runs",
            {},
            tuple(values),
        )
    ]
