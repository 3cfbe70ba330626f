"""The command `clipit doctor`."""

from clipit.cli.doctor import main

if __name__ == "__main__":
    main()
