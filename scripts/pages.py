"""Make the pages of a finished run (--arm, --seed) and of its pairing again, from what lies on disk."""

from clipit.errors import user_errors
from clipit.settings import read_command


def main() -> None:
    """Parse, write the pages, say where they lie and how large they are."""
    with user_errors():
        extra = {"--most": {"type": int, "default": 3000, "help": "tiles on the page of the pairing (default: 3000)"}}
        config, options = read_command(__doc__ or "", extra=extra)
        from clipit.experiments.materials import Materials
        from clipit.experiments.pages import write_pages
        from clipit.training.arms import resolve_arm

        config = resolve_arm(config)
        for path in write_pages(config, Materials(config), options.most):
            print(f"page: {path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
