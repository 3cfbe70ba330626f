"""Pair every training tile with its nearest snippets."""

from clipit.errors import user_errors
from clipit.settings import read_command


def main() -> None:
    """Parse, pair, print the summary."""
    with user_errors():
        config, _ = read_command(__doc__ or "")
        from clipit.distributed import processes
        from clipit.experiments.materials import Materials

        materials = Materials(config)
        pairs = materials.pairs
        if processes().main:
            print(materials.pairing_text())
            print(f"pairs: {pairs.artifact.file('pairs.parquet')}")


if __name__ == "__main__":
    main()
