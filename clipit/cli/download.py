"""Download a published data set: show its licence, ask for consent, and verify checksums."""

import argparse

from clipit.config.paths import option_path
from clipit.errors import user_errors


def main() -> None:
    """Run the command."""
    with user_errors():
        from clipit.tiles.datasets import DATASETS
        from clipit.tiles.download import download

        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("name", choices=sorted(DATASETS), metavar="NAME", help=", ".join(sorted(DATASETS)))
        parser.add_argument("--to", type=option_path, required=True, metavar="FOLDER", help="folder for the data set")
        parser.add_argument("--accept-licence", action="store_true", help="accept the licence without being asked")
        options = parser.parse_args()
        download(options.name, options.to, accept=lambda: options.accept_licence or _agreed())


def _agreed() -> bool:
    try:
        return input("Do you accept this licence? Type yes to download: ").strip().lower() in ("y", "yes")
    except EOFError:  # no terminal
        return False
