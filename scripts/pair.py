"""Pair every training tile with its nearest snippets, and write a page to look at the pairs."""

from clipit.errors import user_errors
from clipit.settings import read_command


def main() -> None:
    """Parse, pair, print the summary, write the page."""
    with user_errors():
        options = {"--options": {"action": "store_true", "help": "compare pairing rules side by side; write no pairs"}}
        config, given = read_command(__doc__ or "", extra=options)
        from clipit.distributed import processes
        from clipit.experiments.materials import Materials
        from clipit.experiments.pages import write_pairs_page

        materials = Materials(config)
        if given.options:
            from clipit.experiments.pairing_options import pairing_options_text

            materials.say(pairing_options_text(materials))
            return
        pairs = materials.pairs
        if processes().main:
            print(materials.pairing_text())
            print(f"pairs: {pairs.artifact.file('pairs.parquet')}")
            page = write_pairs_page(config, materials)
            print(f"page: {page} ({page.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
