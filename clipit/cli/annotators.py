"""Describe several annotators: agreement, confusions, human ceiling, and the tiles that they agree on least."""

from typing import Any

from clipit.config.command_line import read_file_command
from clipit.errors import user_errors


def main() -> None:
    """Run the command."""
    with user_errors():
        extra: dict[str, dict[str, Any]] = {
            "--shown": {
                "type": int,
                "default": 24,
                "help": "number of tiles on the page that the annotators agree on least (default: 24)",
            },
        }
        file, options = read_file_command(__doc__, (), extra=extra)
        from clipit.api.labels import describe_annotators
        from clipit.distributed import get_processes

        if get_processes().main:
            result = describe_annotators(file, shown=options.shown)
            print(f"{result.summary}\npage: {result.page} (and .json, .csv)")
