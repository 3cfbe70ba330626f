"""The command `clipit completion`."""

from clipit.cli.completion import main

if __name__ == "__main__":
    main()
