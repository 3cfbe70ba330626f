"""Robustness of finished runs: perturbation curves, shifted sets, calibration and test-time adaptation."""

from pathlib import Path

from clipit.errors import user_errors
from clipit.settings import read_command


def main() -> None:
    """Parse, measure, say where the tables lie."""
    with user_errors():
        run = {
            "type": Path, "action": "append", "default": [], "metavar": "FOLDER",
            "help": "a finished run of this configuration; give the option once per run",
        }  # fmt: skip
        config, options = read_command(__doc__ or "", extra={"--run": run})
        from clipit.distributed import processes
        from clipit.experiments.robustness import robustness

        folder = robustness(config, options.run)
        if processes().main:
            print(
                f"tables: {folder / 'robustness.md'}\npage: {folder / 'robustness.html'}\n"
                f"rows: {folder / 'robustness.parquet'}"
            )


if __name__ == "__main__":
    main()
