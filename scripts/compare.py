"""The command `clipit compare`."""

from clipit.cli.compare import main

if __name__ == "__main__":
    main()
