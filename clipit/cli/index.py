"""Read reports, cut them into snippets, embed them and build the FAISS index."""

from clipit.config.load import read_command
from clipit.errors import user_errors


def main() -> None:
    """Run the command."""
    with user_errors():
        config, _ = read_command(__doc__)
        from clipit.distributed import get_processes
        from clipit.workspace.workspace import Workspace

        index = Workspace(config).index
        if get_processes().main:
            facts = index.artifact.manifest.facts
            kind = f"{facts['key']} ({facts['backend']}{', centred' if facts['centring'] else ''})"
            print(f"{facts['rows']} distinct snippets in the index: {kind}")
            print(f"index: {index.artifact.folder}")
