"""Measure the robustness of finished runs: perturbations, shifted sets, calibration and test-time adaptation."""

from clipit.config.command_line import read_file_command
from clipit.config.paths import run_path
from clipit.errors import user_errors
from clipit.prompts.early_check import check_prompt_files
from clipit.reporting.csv_export import RECORD_OPTION, check_export, finish_study


def main() -> None:
    """Run the command."""
    with user_errors():
        run = {
            "type": run_path, "action": "append", "default": [], "metavar": "FOLDER",
            "help": "folder of a finished run with this configuration; repeat the option for several runs",
        }  # fmt: skip
        extra = {"--run": run, **RECORD_OPTION}
        file, options = read_file_command(__doc__, ["robustness", "comparison"], extra=extra, needs_reports=False)
        check_prompt_files(file)
        if options.record:
            check_export(options.record)
        from clipit.studies.robustness.robustness_study import measure_robustness

        folder = measure_robustness(file.run, file.robustness, options.run, file.comparison.shifted)
        finish_study(folder, "robustness", options.record)
