"""Segment tiles that have masks by several methods, beside floors and ceilings: zero-shot, few masks, baselines."""

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
            "help": "finished run whose classifier segments as well",
        }
        file, options = read_file_command(__doc__, ["segmentation"], extra={"--run": run, **RECORD_OPTION})
        if options.record:
            check_export(options.record)
        from clipit.api.segmentation import segment

        finish_study(segment(file, options.run).folder, "segmentation", options.record)
