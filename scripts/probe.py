"""Probes, few-shot episodes, label-efficiency curves and retrieval on frozen features (and on a run's classifier)."""

from pathlib import Path

from clipit.errors import user_errors
from clipit.settings import read_command


def main() -> None:
    """Parse, measure, say where the tables lie."""
    with user_errors():
        run = {"type": Path, "default": None, "metavar": "FOLDER", "help": "a finished run, measured beside the others"}
        config, options = read_command(__doc__ or "", extra={"--run": run})
        from clipit.distributed import processes
        from clipit.experiments.probing import probe

        folder = probe(config, options.run)
        if processes().main:
            print(
                f"tables: {folder / 'probing.md'}\npage: {folder / 'probing.html'}\nrows: {folder / 'probing.parquet'}"
            )


if __name__ == "__main__":
    main()
