"""Evaluate a finished run again, or on new tiles or prompts with --run FOLDER and --tiles.path or --prompts."""

import sys
from typing import Any

from clipit.config.command_line import read_file_command
from clipit.config.paths import run_path
from clipit.errors import user_errors
from clipit.prompts.early_check import check_prompt_file, check_prompt_files

_OPTIONS: dict[str, dict[str, Any]] = {
    "--run": {
        "type": run_path,
        "help": "folder of a finished run, instead of --config. On its own, the option evaluates the run again. With "
        "--tiles.path (and any other tiles.* key, or --config FILE with a tiles section) or --prompts, the run is "
        "scored on the new tiles or prompts, in addition to its own test results; the scores are written to "
        "external/NAME in its folder, and --name sets NAME",
    }
}


def main() -> None:
    """Run the command."""
    with user_errors():
        if any(argument.partition("=")[0] == "--run" for argument in sys.argv[1:]):
            _evaluate_folder()
            return
        config, _ = read_file_command(__doc__, (), extra=_OPTIONS, config_usage="(--config FILE | --run FOLDER)")
        check_prompt_files(config)
        from clipit.api.runs import evaluate
        from clipit.distributed import get_processes
        from clipit.reporting.tables import metrics_table

        run = evaluate(config)
        if get_processes().main:
            print(f"{metrics_table(run.results)}\n\nsummary: {run.summary}\npage: {run.page}")


def _evaluate_folder() -> None:
    from clipit.config.new_inputs import read_new_inputs

    inputs = read_new_inputs(__doc__, _OPTIONS)
    check_prompt_file(inputs.prompts)
    from clipit.reporting.external_page import add_own_scores
    from clipit.reporting.tables import metrics_table
    from clipit.runs.evaluate import evaluate_again
    from clipit.runs.external import evaluate_external
    from clipit.runs.folder import read_run_config
    from clipit.workspace.workspace import Workspace

    config = inputs.apply(read_run_config(inputs.run))
    if inputs.tiles is None and inputs.prompts is None:
        folder, results = evaluate_again(config, Workspace(config), inputs.run)
        table = results
    else:
        folder, results = evaluate_external(inputs.run, inputs.tiles, inputs.prompts, inputs.name, config)
        table = add_own_scores(results) if results else {}
    if results:
        print(f"{metrics_table(table)}\n\nsummary: {folder / 'summary.md'}\npage: {folder / 'report.html'}")
