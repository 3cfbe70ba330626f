"""The command `clipit probe`."""

from clipit.cli.probe import main

if __name__ == "__main__":
    main()
