"""Print a shipped configuration, as a file to start from; without a name, list all of them.

`clipit init own_table > config.yaml` writes one; `--config own_table` uses it unchanged.
"""

import argparse
from pathlib import Path

from clipit.config.paths import option_path
from clipit.errors import ArtifactError, ConfigError, disk_errors, shortlist, user_errors


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", metavar="NAME", help="shipped configuration, such as own_table")
    parser.add_argument("--to", type=option_path, metavar="FILE", help="write to this file, which must not exist")
    options = parser.parse_args()
    with user_errors():
        from clipit.config.shipped import shipped_folder, shipped_names

        names = shipped_names()
        if options.name is None:
            width = max(map(len, names))
            print("\n".join(f"{name:<{width}}  {summary}" for name, summary in names.items()))
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


def _write_new(path: Path, text: str) -> None:
    """Write a file, but never overwrite one, which a user may have changed."""
    with disk_errors(path):
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise ArtifactError("the file already exists", where=path, fix="choose another name for --to") from None
