"""Train one run: build missing inputs, train the student, export the classifier and evaluate it."""

from clipit.config.command_line import read_file_command
from clipit.errors import user_errors
from clipit.prompts.early_check import check_prompt_files


def main() -> None:
    """Run the command."""
    with user_errors():
        config, _ = read_file_command(__doc__, ())
        check_prompt_files(config)
        from clipit.api.runs import train
        from clipit.distributed import get_processes
        from clipit.models.classifier_spec import read_spec
        from clipit.reporting.tables import metrics_table

        run = train(config)
        if get_processes().main:
            if run.results["note"]:
                print(f"\nnote: {run.results['note']}")
            print(
                f"\n{metrics_table(run.results)}\n\nsummary: {run.summary}\n"
                + (f"page: {run.page}\n" if run.page.is_file() else "page: not written; clipit pages writes it\n")
                + f"classifier: {run.classifier}\n{read_spec(run.classifier).export_note}"
            )
