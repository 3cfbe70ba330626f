"""The command `clipit export`."""

from clipit.cli.export import main

if __name__ == "__main__":
    main()
