"""`python -m clipit` is the command `clipit`; `accelerate launch -m clipit train` starts it in several processes."""

from clipit.cli.main import main

if __name__ == "__main__":
    main()
