"""The command `clipit pages`."""

from clipit.cli.pages import main

if __name__ == "__main__":
    main()
