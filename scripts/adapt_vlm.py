"""The command `clipit adapt`."""

from clipit.cli.adapt import main

if __name__ == "__main__":
    main()
