"""Pair every training tile with its nearest snippets, and write a page that shows the pairs."""

from clipit.config.load import read_command
from clipit.errors import user_errors


def main() -> None:
    """Run the command."""
    with user_errors():
        extra = {
            "--options": {"action": "store_true", "help": "compare pairing rules in a table instead; writes no pairs"}
        }
        config, options = read_command(__doc__, extra=extra)
        from clipit.distributed import get_processes
        from clipit.workspace.pairing_report import compare_pairing_rules, write_pairs_page
        from clipit.workspace.workspace import Workspace

        workspace = Workspace(config)
        if options.options:
            if get_processes().main:
                print(compare_pairing_rules(workspace))
            return
        pairs = workspace.pairs
        if get_processes().main:
            print(workspace.pairing_summary())
            print(f"pairs: {pairs.artifact.file('pairs.parquet')}")
            page = write_pairs_page(config, workspace)
            print(f"page: {page} ({page.stat().st_size / 1e6:.1f} MB)")
