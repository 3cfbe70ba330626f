"""Find suspicious labels: rank the labels by out-of-fold predictions, and write a page to review them."""

from clipit.config.command_line import read_file_command
from clipit.errors import user_errors
from clipit.prompts.early_check import check_prompt_files


def main() -> None:
    """Run the command."""
    with user_errors():
        file, _ = read_file_command(__doc__, ["label_issues"], needs_reports=False)
        check_prompt_files(file)
        from clipit.api.labels import find_label_issues
        from clipit.distributed import get_processes

        result = find_label_issues(file)
        if get_processes().main:
            print(f"page: {result.page} (and .csv, .json)")
