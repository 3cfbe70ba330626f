"""The command `clipit demo`."""

from clipit.cli.demo import main

if __name__ == "__main__":
    main()
