"""Train one run: build missing inputs, train the student, export the classifier and evaluate it."""

from clipit.config.load import read_command
from clipit.errors import user_errors


def main() -> None:
    """Run the command."""
    with user_errors():
        config, _ = read_command(__doc__)
        from clipit.distributed import get_processes
        from clipit.models.classifier_spec import read_spec
        from clipit.reporting.tables import metrics_table
        from clipit.runs.folder import read_results
        from clipit.runs.train import train_run

        folder = train_run(config)
        if get_processes().main:
            results = read_results(folder)
            if results["note"]:
                print(f"\nnote: {results['note']}")
            print(
                f"\n{metrics_table(results)}\n\nsummary: {folder / 'summary.md'}\npage: {folder / 'report.html'}\n"
                f"classifier: {folder / 'classifier'}\n{read_spec(folder / 'classifier').export_note}"
            )
