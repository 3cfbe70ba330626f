"""Rewrite the page of a finished run (--arm, --seed) and its pairing browser, or the page of a comparison."""

from typing import Any

from clipit.config.command_line import read_command
from clipit.errors import user_errors


def main() -> None:
    """Run the command."""
    with user_errors():
        extra: dict[str, dict[str, Any]] = {
            "--of": {
                "choices": ("run", "comparison"),
                "default": "run",
                "help": "rewrite the pages of a run and its pairing (default), or the tables and page of a comparison",
            },
            "--max-tiles": {
                "type": int,
                "default": 3000,
                "help": "maximum number of tiles on the pairing page (default: 3000)",
            },
        }
        config, options = read_command(__doc__, extra=extra)
        from clipit.comparison.rebuild import rebuild_comparison
        from clipit.runs.page import write_pages
        from clipit.training.arms import resolve_arm
        from clipit.workspace.workspace import Workspace

        if options.of == "comparison":
            pages = rebuild_comparison(config)
        else:
            config = resolve_arm(config)
            pages = write_pages(config, Workspace(config), options.max_tiles)
        for path in pages:
            print(f"page: {path} ({path.stat().st_size / 1e6:.1f} MB)")
