"""The command `clipit robustness`."""

from clipit.cli.robustness import main

if __name__ == "__main__":
    main()
