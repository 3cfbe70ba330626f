"""Download a published data set: show its licence, ask for consent, and verify checksums.

Without a name, or with the name `list`, list the data sets.
"""

from clipit.config.computing_options import OptionParser
from clipit.config.paths import option_path
from clipit.errors import user_errors

_LIST = "list"


def main() -> None:
    """Run the command."""
    with user_errors():
        from clipit.tiles.datasets import DATASETS
        from clipit.tiles.download import download

        parser = OptionParser(description=__doc__)
        names = sorted(DATASETS)
        parser.add_argument("name", choices=[*names, _LIST], metavar="NAME", nargs="?", help=", ".join(names))
        parser.add_argument("--to", type=option_path, metavar="FOLDER", help="folder for the data set")
        parser.add_argument("--accept-licence", action="store_true", help="accept the licence without being asked")
        options = parser.parse_args()
        if options.name in (None, _LIST):
            from clipit.reporting.tables import markdown_table

            kinds = {True: "yes", False: "by hand"}
            rows = [
                (name, data.title, data.licence, kinds[bool(data.files)]) for name, data in sorted(DATASETS.items())
            ]
            print(markdown_table(("name", "data set", "licence", "download"), rows, left=4))
            return
        if options.to is None:
            parser.error("the following arguments are required: --to")
        download(options.name, options.to, accept=lambda: options.accept_licence or _agreed())


def _agreed() -> bool:
    try:
        return input("Do you accept this licence? Type yes to download: ").strip().lower() in ("y", "yes")
    except EOFError:  # no terminal
        return False
