"""Search learning rates, steps and further keys on validation tiles: the same grid for every arm of a comparison."""

from clipit.config.load import read_file_command
from clipit.errors import user_errors


def main() -> None:
    """Parse the command line, search, and print where the scores and the chosen `arms` are."""
    with user_errors():
        file, _ = read_file_command(__doc__, ["comparison"])
        from clipit.comparison.tune import tune

        path = tune(file.run, file.comparison)
        print(f"\nall trials: {path}\nfor the configuration: {path.with_suffix('.yaml')}")
