"""Evaluate a finished run again: write predictions.parquet, and from it results.json, summary.md and plots."""

from clipit.config.load import read_command
from clipit.errors import user_errors


def main() -> None:
    """Run the command."""
    with user_errors():
        config, _ = read_command(__doc__)
        from clipit.reporting.tables import metrics_table
        from clipit.runs.evaluate import evaluate_again
        from clipit.training.arms import resolve_arm
        from clipit.workspace.workspace import Workspace

        config = resolve_arm(config)
        folder, results = evaluate_again(config, Workspace(config))
        if results:
            print(f"{metrics_table(results)}\n\nsummary: {folder / 'summary.md'}\npage: {folder / 'report.html'}")
