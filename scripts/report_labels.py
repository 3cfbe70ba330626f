"""The command `clipit report-labels`."""

from clipit.cli.report_labels import main

if __name__ == "__main__":
    main()
