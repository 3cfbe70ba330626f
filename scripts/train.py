"""Train one run: build what it lacks, train the student, export the classifier, evaluate."""

from clipit.config.load import read_command
from clipit.errors import user_errors


def main() -> None:
    """Parse, run, say where everything lies."""
    with user_errors():
        config, _ = read_command(__doc__ or "")
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


if __name__ == "__main__":
    main()
