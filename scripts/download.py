"""Download a published data set: its licence is shown and asked for, its checksums are verified."""

import argparse
from pathlib import Path

from clipit.errors import user_errors


def main() -> None:
    """Parse, show the terms, ask, download."""
    with user_errors():
        from clipit.tiles.datasets import DATASETS
        from clipit.tiles.download import download

        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("name", choices=sorted(DATASETS), metavar="NAME", help=", ".join(sorted(DATASETS)))
        parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="folder to put it into")
        parser.add_argument("--accept-licence", action="store_true", help="do not ask")
        options = parser.parse_args()
        download(options.name, options.to, accept=lambda: options.accept_licence or _agreed())


def _agreed() -> bool:
    try:
        return input("Do you accept this licence? Type yes to download: ").strip().lower() in ("y", "yes")
    except EOFError:  # nobody is there to answer
        return False


if __name__ == "__main__":
    main()
