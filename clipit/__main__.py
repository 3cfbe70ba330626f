"""Run `clipit` as a module: `python -m clipit train`, or in several processes `accelerate launch -m clipit train`."""

from clipit.cli.main import main

if __name__ == "__main__":
    main()
