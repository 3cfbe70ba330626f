"""The command `clipit predict`."""

from clipit.cli.predict import main

if __name__ == "__main__":
    main()
