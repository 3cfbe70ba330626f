"""The command `clipit evaluate`."""

from clipit.cli.evaluate import main

if __name__ == "__main__":
    main()
