"""The demo: write the synthetic world, compare arms on it over seeds, show where everything lies."""

from clipit.errors import user_errors
from clipit.settings import read_command


def main() -> None:
    """Parse, run, print the table."""
    with user_errors():
        config, _ = read_command(__doc__ or "")
        from clipit.experiments.demo import demo

        demo(config)


if __name__ == "__main__":
    main()
