"""The command `clipit check-leaks`."""

from clipit.cli.check_leaks import main

if __name__ == "__main__":
    main()
