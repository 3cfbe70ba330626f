"""The command `clipit index`."""

from clipit.cli.index import main

if __name__ == "__main__":
    main()
