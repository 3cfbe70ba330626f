"""The command `clipit init`."""

from clipit.cli.init import main

if __name__ == "__main__":
    main()
