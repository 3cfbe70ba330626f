"""The command `clipit mil`."""

from clipit.cli.mil import main

if __name__ == "__main__":
    main()
