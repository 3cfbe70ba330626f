"""Clipit/comparison/analyses/registry.py."""

from collections.abc import Callable, Sequence
from pathlib import Path

from clipit.comparison.analyses.class_gains import _by_class
from clipit.comparison.analyses.complementarity import right_where_vision_is_wrong
from clipit.comparison.analyses.joint_space import joint_space
from clipit.comparison.analyses.pairing import _pairing
from clipit.comparison.analyses.result import AnalysisResult
from clipit.comparison.plan import Plan
from clipit.evaluation.score_row import ScoreRow
from clipit.workspace.workspace import Workspace

Analysis = Callable[[Plan, Workspace, Sequence[ScoreRow], Path], list[AnalysisResult]]


def run_analyses(plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow], folder: Path) -> list[AnalysisResult]:
    """Run the analyses of `comparison.why` on a plan's finished runs.

    Args:
        plan: Data set and backbone.
        workspace: Of its configuration.
        rows: Of its runs.
        folder: Where the predictions and scores that only an analysis needs are kept.
    """
    analyses: dict[str, Analysis] = {
        "complementarity": right_where_vision_is_wrong,
        "pairing": _pairing,
        "classes": _by_class,
        "embeddings": joint_space,
    }
    found = []
    for name in plan.comparison.why:
        found += analyses[name](plan, workspace, rows, folder)
    return found
