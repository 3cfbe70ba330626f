"""Make pages again, from what lies on disk: of a run (--arm, --seed) and its pairing, or --of comparison."""

from typing import Any

from clipit.config.load import read_command
from clipit.errors import user_errors


def main() -> None:
    """Parse, write the pages, say where they lie and how large they are."""
    with user_errors():
        extra: dict[str, dict[str, Any]] = {
            "--of": {
                "choices": ("run", "comparison"),
                "default": "run",
                "help": "run (with its pairing; default), or comparison: its tables and page, without training",
            },
            "--most": {"type": int, "default": 3000, "help": "tiles on the page of the pairing (default: 3000)"},
        }
        config, options = read_command(__doc__ or "", extra=extra)
        from clipit.comparison.rebuild import rebuild_comparison
        from clipit.runs.page import write_pages
        from clipit.training.arms import resolve_arm
        from clipit.workspace.workspace import Workspace

        if options.of == "comparison":
            made = rebuild_comparison(config)
        else:
            config = resolve_arm(config)
            made = write_pages(config, Workspace(config), options.most)
        for path in made:
            print(f"page: {path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
