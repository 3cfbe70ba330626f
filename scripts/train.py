"""The command `clipit train`."""

from clipit.cli.train import main

if __name__ == "__main__":
    main()
