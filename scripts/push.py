"""The command `clipit push`."""

from clipit.cli.push import main

if __name__ == "__main__":
    main()
