"""Measure frozen features by probes, few-shot episodes, label-efficiency curves and retrieval."""

from pathlib import Path

from clipit.config.command_line import read_file_command
from clipit.errors import user_errors
from clipit.reporting.csv_export import RECORD_OPTION, check_export, finish_study


def main() -> None:
    """Run the command."""
    with user_errors():
        run = {
            "type": Path,
            "default": None,
            "metavar": "FOLDER",
            "help": "finished run whose classifier is measured as well",
        }
        file, options = read_file_command(__doc__, ["probing"], extra={"--run": run, **RECORD_OPTION})
        if options.record:
            check_export(options.record)
        from clipit.api.experiments import probe

        finish_study(probe(file, options.run).folder, "probing", options.record)
