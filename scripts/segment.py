"""The command `clipit segment`."""

from clipit.cli.segment import main

if __name__ == "__main__":
    main()
