"""Run the demo: write the synthetic world, compare arms on it over seeds, and try the exported classifier."""

import sys

from clipit.config.command_line import read_file_command
from clipit.errors import user_errors


def main() -> None:
    """Run the command."""
    with user_errors():
        extra = {
            "--tune": {"action": "store_true", "help": "search the arms' learning rates and steps instead"},
            "--cases": {"action": "store_true", "help": "write the world whose tiles and reports share their patients"},
        }
        default = "demo_own_reports" if "--cases" in sys.argv else "demo"
        file, options = read_file_command(__doc__, ["comparison"], extra=extra, default_config=default)
        from clipit.comparison.demo import demo, write_demo_world
        from clipit.comparison.tune import tune

        if options.tune:
            write_demo_world(file.run, cases=options.cases)
            print(f"\nall trials, and the arms for the configuration beside it: {tune(file.run, file.comparison)}")
        else:
            demo(file.run, file.comparison, cases=options.cases)
