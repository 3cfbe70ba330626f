"""The command `clipit prompts`."""

from clipit.cli.prompts import main

if __name__ == "__main__":
    main()
