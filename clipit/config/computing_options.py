"""Options for commands that run a model on images: batches, threads, device, precision, remote code."""

import argparse


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
