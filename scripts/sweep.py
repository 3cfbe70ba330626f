"""The command `clipit sweep`."""

from clipit.cli.sweep import main

if __name__ == "__main__":
    main()
