"""Read reports, cut them into snippets, embed them and build the FAISS index."""

from clipit.errors import user_errors
from clipit.settings import read_command


def main() -> None:
    """Parse, build, print the account."""
    with user_errors():
        config, _ = read_command(__doc__ or "")
        from clipit.distributed import processes
        from clipit.experiments.materials import Materials

        index = Materials(config).index
        if processes().main:
            facts = index.artifact.manifest.facts
            kind = f"{facts['key']} ({facts['backend']}{', centred' if facts['centring'] else ''})"
            print(f"{facts['rows']} distinct snippets in the index: {kind}")
            print(f"index: {index.artifact.folder}")


if __name__ == "__main__":
    main()
