"""Evaluate a finished run again: write predictions.parquet, and from it results.json, summary.md and plots."""

from clipit.config.load import read_file_command
from clipit.errors import user_errors


def main() -> None:
    """Run the command."""
    with user_errors():
        config, _ = read_file_command(__doc__, ())
        from clipit.api.runs import evaluate
        from clipit.distributed import get_processes
        from clipit.reporting.tables import metrics_table

        run = evaluate(config)
        if get_processes().main:
            print(f"{metrics_table(run.results)}\n\nsummary: {run.summary}\npage: {run.page}")
