"""The command `clipit download`."""

from clipit.cli.download import main

if __name__ == "__main__":
    main()
