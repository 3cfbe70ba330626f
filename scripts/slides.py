"""The command `clipit slides`."""

from clipit.cli.slides import main

if __name__ == "__main__":
    main()
