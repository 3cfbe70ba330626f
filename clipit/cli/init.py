"""Print a shipped configuration to start from; without a name, list all of them.

`clipit init own_table > config.yaml` saves a configuration as a file; `--config own_table` uses it unchanged.
"""

import argparse
import textwrap
from collections.abc import Mapping
from pathlib import Path

from clipit.config.computing_options import OptionParser
from clipit.config.paths import option_path
from clipit.errors import ArtifactError, ConfigError, disk_errors, shortlist, user_errors

OWN_DATA = ("own_table", "own_comparison", "own_reports", "own_annotators", "own_adaptation")
"""Shipped configurations that take the paths of the user's own data, in the order in which to try them."""


def main() -> None:
    """Run the command."""
    parser = OptionParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", metavar="NAME", help="shipped configuration, such as own_table")
    parser.add_argument("--to", type=option_path, metavar="FILE", help="write to this file, which must not exist")
    options = parser.parse_args()
    with user_errors():
        from clipit.config.shipped import shipped_folder, shipped_names

        names = shipped_names()
        if options.name is None:
            print(_listing(names))
            return
        if options.name not in names:
            raise ConfigError(
                f"unknown shipped configuration {options.name!r}",
                where="NAME",
                fix=f"choose one of: {shortlist([*names], len(names))}",
            )
        text = (shipped_folder() / f"{options.name}.yaml").read_text(encoding="utf-8")
        if options.to is None:
            print(text, end="")
        else:
            _write_new(options.to, text)
            print(options.to)


def _listing(names: Mapping[str, str]) -> str:
    """List the configurations with their summaries, starting with those for the user's own data."""
    others = [name for name in names if name not in OWN_DATA]
    width = max(map(len, names))
    lines = []
    for title, group in (("For your own data", OWN_DATA), ("Examples and published data sets", others)):
        lines += ["", f"{title}:"]
        for name in group:
            text = f"  {name:<{width}}  {names[name]}"
            lines.append(textwrap.fill(text, 120, subsequent_indent=" " * (width + 4)))
    return "\n".join(lines[1:])


def _write_new(path: Path, text: str) -> None:
    """Write a new file; an existing file, which the user may have changed, is never overwritten."""
    with disk_errors(path):
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise ArtifactError("the file already exists", where=path, fix="choose a different name for --to") from None
