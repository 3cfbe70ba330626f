"""The command `clipit tune`."""

from clipit.cli.tune import main

if __name__ == "__main__":
    main()
