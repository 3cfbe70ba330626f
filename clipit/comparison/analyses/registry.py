"""Registry of a comparison's analyses, keyed by their names in the configuration."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from clipit.comparison.analyses.class_gains import analyse_class_gains
from clipit.comparison.analyses.complementarity import analyse_complementarity
from clipit.comparison.analyses.joint_space import analyse_joint_space
from clipit.comparison.analyses.pairing import analyse_pairing
from clipit.comparison.analyses.result import AnalysisResult
from clipit.comparison.plan import Plan
from clipit.evaluation.score_row import ScoreRow
from clipit.workspace.workspace import Workspace

Analysis = Callable[[Plan, Workspace, Sequence[ScoreRow], Path], list[AnalysisResult]]
"""Function that takes a plan, its workspace, the rows of its finished runs, and a folder for intermediate files."""
ANALYSES: Mapping[str, Analysis] = {
    "complementarity": analyse_complementarity,
    "pairing": analyse_pairing,
    "classes": analyse_class_gains,
    "embeddings": analyse_joint_space,
}


def run_analyses(plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow], folder: Path) -> list[AnalysisResult]:
    """Run the configured analyses on the finished runs of a plan; must be called by all processes.

    Args:
        workspace: Cached inputs of the plan's configuration.
        rows: Rows of the plan's runs and reference classifiers.
        folder: Folder for predictions and scores that the analyses compute.
    """
    results = []
    for name in plan.comparison.analyses:
        results += ANALYSES[name](plan, workspace, rows, folder)
    return results
