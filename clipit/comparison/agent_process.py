"""Entry point of an additional agent, started by `clipit.comparison.agents`: train runs until all are finished."""

import json
import logging
import os
import sys
import threading

from clipit.comparison.compare import train_share
from clipit.comparison.tune import run_trials
from clipit.config.load import validate_file
from clipit.errors import user_errors


def main() -> None:
    """Read a request from standard input, and train its runs together with the other agents."""
    with user_errors():
        request = json.loads(sys.stdin.buffer.readline())
        threading.Thread(target=_exit_with_first_agent, daemon=True).start()
        logging.getLogger("clipit").setLevel(logging.WARNING)  # the first agent logs the runs
        sys.argv = request["argv"]  # the command in the provenance of the results
        file = validate_file(request["values"], "the comparison")
        work = run_trials if request["task"] == "tune" else train_share
        work(file.run, file.comparison)


def _exit_with_first_agent() -> None:
    """Exit when standard input closes; other agents resume its runs from their checkpoints."""
    while os.read(0, 1):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
