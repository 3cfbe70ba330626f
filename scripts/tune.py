"""Search learning rates and steps: the same grid for every arm of `comparison`, chosen on validation."""

from clipit.config.load import read_file_command
from clipit.errors import user_errors


def main() -> None:
    """Parse, search, print the table and the `arms` block to put into the configuration."""
    with user_errors():
        file, _ = read_file_command(__doc__, ["comparison"])
        from clipit.comparison.tune import tune

        path = tune(file.run, file.comparison)
        print(f"\nall trials: {path}\nfor the configuration: {path.with_suffix('.yaml')}")


if __name__ == "__main__":
    main()
