"""The command `clipit label-issues`."""

from clipit.cli.label_issues import main

if __name__ == "__main__":
    main()
