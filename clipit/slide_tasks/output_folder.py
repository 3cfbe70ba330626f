"""Lock the output folder of a slide command, and keep tables of different commands apart."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from clipit.distributed import get_processes
from clipit.errors import ConfigError
from clipit.output_files.artifacts import locked
from clipit.output_files.leftovers import delete_leftovers

RECORDS = {
    "clipit slides tile": "tiling.json",
    "clipit slides score (or map)": "scoring.json",
    "clipit slides compare": "slide_comparison.json",
}
"""File that each command writes last to its output folder, by command."""
_LOCK = "slides"


@contextmanager
def output_folder(out: Path, record: str) -> Iterator[None]:
    """Lock an output folder while a command writes to it; must be called by all processes of the command.

    A second command on the same folder waits for the first, and then skips finished slides.

    Args:
        record: File name of this command's record, one of `RECORDS`.

    Raises:
        ConfigError: The folder contains tables of a different command, which may use the same names.
    """
    processes = get_processes()
    with locked(out / _LOCK) if processes.main else nullcontext():
        present = [name for name, other in RECORDS.items() if other != record and (out / other).is_file()]
        others = processes.broadcast(present)
        if others:
            raise ConfigError(
                f"this folder contains the tables of {' and '.join(others)}",
                where=out,
                fix="choose a different folder with --out",
            )
        if processes.main:
            delete_leftovers(out)
        yield
        processes.barrier()
