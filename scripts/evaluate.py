"""Evaluate a finished run again: predictions.parquet first, then results.json, summary.md and plots from it."""

from clipit.config.load import read_command
from clipit.errors import user_errors


def main() -> None:
    """Parse, predict, score, say where everything lies."""
    with user_errors():
        config, _ = read_command(__doc__ or "")
        from clipit.reporting.tables import metrics_table
        from clipit.runs.evaluate import evaluate_again
        from clipit.training.arms import resolve_arm
        from clipit.workspace.workspace import Workspace

        config = resolve_arm(config)
        folder, results = evaluate_again(config, Workspace(config))
        if results:
            print(f"{metrics_table(results)}\n\nsummary: {folder / 'summary.md'}\npage: {folder / 'report.html'}")


if __name__ == "__main__":
    main()
