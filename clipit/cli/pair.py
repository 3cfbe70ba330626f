"""Pair every training tile with its nearest snippets, and write a page that shows the pairs."""

from pathlib import Path
from typing import Any

from clipit.config.command_line import read_file_command
from clipit.config.load import require_tiles
from clipit.errors import user_errors
from clipit.prompts.early_check import check_prompt_files


def main() -> None:
    """Run the command."""
    with user_errors():
        extra: dict[str, dict[str, Any]] = {
            "--compare-rules": {
                "action": "store_true",
                "help": "compare pairing rules in a table, without writing pairs",
            },
            "--features": {
                "type": Path,
                "action": "append",
                "metavar": "FILE.h5",
                "help": "pair slide tiles using features from TRIDENT or CLAM (a file or folder; may be repeated)",
            },
        }
        config, options = read_file_command(__doc__, (), extra=extra, needs_tiles=False)
        check_prompt_files(config)
        from clipit.api.texts import pair
        from clipit.distributed import get_processes
        from clipit.workspace.pairs_page import compare_pairing_rules
        from clipit.workspace.preflight import check_inputs
        from clipit.workspace.workspace import Workspace

        if options.compare_rules:
            require_tiles(config.run)
            workspace = Workspace(config.run)
            check_inputs(workspace, ["vlm"], reports=True)
            table = compare_pairing_rules(workspace)
            if get_processes().main:
                print(table)
            return
        pairs = pair(config, features=options.features)
        if get_processes().main:
            print(f"{pairs.summary}\npairs: {pairs.file}")
            if pairs.page is not None:
                print(f"page: {pairs.page} ({pairs.page.stat().st_size / 1e6:.1f} MB)")
