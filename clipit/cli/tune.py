"""Tune learning rates, steps and other keys on validation tiles, with the same grid for every arm."""

from clipit.config.command_line import AGENTS, read_file_command
from clipit.errors import user_errors
from clipit.prompts.early_check import check_prompt_files


def main() -> None:
    """Parse the command line, search, and print where the scores and the chosen `arms` are."""
    with user_errors():
        file, options = read_file_command(__doc__, ["comparison"], extra=AGENTS)
        from clipit.api.experiments import tune

        check_prompt_files(file)
        search = tune(file, agents=options.agents)
        print(f"\nall trials: {search.file}\nchosen arms, for the configuration: {search.arms_file}")
