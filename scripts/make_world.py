"""The command `clipit world`."""

from clipit.cli.world import main

if __name__ == "__main__":
    main()
