"""Adapt the VLM to pairs, bags or cases, with controls, and measure it before and after on patients never seen."""

from clipit.config.command_line import read_file_command
from clipit.errors import user_errors
from clipit.reporting.csv_export import RECORD_OPTION, check_export, finish_study


def main() -> None:
    """Run the command."""
    with user_errors():
        file, options = read_file_command(__doc__, ["adapt", "probing"], extra=RECORD_OPTION, needs_tiles=False)
        if options.record:
            check_export(options.record)
        from clipit.api.adaptation import adapt_vlm

        finish_study(adapt_vlm(file).folder, "adapt", options.record)
