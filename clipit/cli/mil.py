"""Predict slide or patient labels from stored features: attention, mean or max pooling, zero-shot, shuffled labels."""

from clipit.config.command_line import read_file_command
from clipit.errors import user_errors
from clipit.prompts.early_check import check_prompt_files
from clipit.reporting.csv_export import RECORD_OPTION, check_export, finish_study


def main() -> None:
    """Run the command."""
    with user_errors():
        file, options = read_file_command(__doc__, ["mil"], extra=RECORD_OPTION, needs_tiles=False, needs_reports=False)
        check_prompt_files(file)
        if options.record:
            check_export(options.record)
        from clipit.api.mil import train_mil

        finish_study(train_mil(file).folder, "mil", options.record)
