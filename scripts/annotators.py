"""The command `clipit annotators`."""

from clipit.cli.annotators import main

if __name__ == "__main__":
    main()
