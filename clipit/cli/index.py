"""Read reports, split them into snippets, embed them and build the FAISS index.

The configuration needs no tiles. With tiles, reports of patients with validation or test tiles are excluded.
"""

from clipit.config.command_line import read_file_command
from clipit.errors import counted, user_errors
from clipit.prompts.early_check import check_prompt_files


def main() -> None:
    """Run the command."""
    with user_errors():
        config, _ = read_file_command(__doc__, (), needs_tiles=False)
        check_prompt_files(config)
        from clipit.api.texts import build_text_index
        from clipit.distributed import get_processes

        index = build_text_index(config)
        if get_processes().main:
            if index.reused:
                print(f"{index.summary}\n")
            print(f"{counted(index.rows, 'distinct snippet')} in the index: {index.kind}\nindex: {index.folder}")
