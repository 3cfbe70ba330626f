"""Pair every training tile with its nearest snippets, and write a page to look at the pairs."""

from clipit.config.load import read_command
from clipit.errors import user_errors


def main() -> None:
    """Parse, pair, print the summary, write the page."""
    with user_errors():
        options = {"--options": {"action": "store_true", "help": "compare pairing rules side by side; write no pairs"}}
        config, given = read_command(__doc__ or "", extra=options)
        from clipit.distributed import get_processes
        from clipit.workspace.pairing_report import write_pairs_page
        from clipit.workspace.workspace import Workspace

        workspace = Workspace(config)
        if given.options:
            from clipit.workspace.pairing_report import compare_pairing_rules

            if get_processes().main:
                print(compare_pairing_rules(workspace))
            return
        pairs = workspace.pairs
        if get_processes().main:
            print(workspace.pairing_summary())
            print(f"pairs: {pairs.artifact.file('pairs.parquet')}")
            page = write_pairs_page(config, workspace)
            print(f"page: {page} ({page.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
