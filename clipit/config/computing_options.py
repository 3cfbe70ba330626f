"""Parser for commands without configuration keys, and options for those that run a model on images."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any


class OptionParser(argparse.ArgumentParser):
    """Argument parser that rejects repeated options; argparse would use the last one without a message."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments; see `argparse`."""
        arguments: Sequence[str] = sys.argv[1:] if args is None else args
        repeatable = {
            name for action in self._actions if isinstance(action, argparse._AppendAction)
            for name in action.option_strings
        }  # fmt: skip
        once = {*self._option_string_actions} - repeatable
        counts = Counter(name for argument in arguments if (name := argument.partition("=")[0]) in once)
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            self.error(f"options given more than once: {', '.join(twice)}")
        return super().parse_known_args(args, namespace)


def positive(text: str) -> int:
    """Parse a whole number of at least 1.

    Raises:
        ValueError: The text is not a whole number.
        ArgumentTypeError: The number is below 1.
    """
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def add_computing_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add `--batch-size`, `--workers`, `--device`, `--bf16` and `--trust-remote-code`."""
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help="images per batch (default: 64)")
    parser.add_argument(
        "--workers",
        type=positive,
        default=0,
        metavar="N",
        help="threads that read images while the model runs (default: one per core, at most 8)",
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16: faster on GPUs, less precise")
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="allow the backbone or the VLM to run Python code from its own repository",
    )
