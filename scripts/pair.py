"""The command `clipit pair`."""

from clipit.cli.pair import main

if __name__ == "__main__":
    main()
