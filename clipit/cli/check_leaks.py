"""Find tiles, patients and reports that occur on both sides of a split.

The exit status is 0 if nothing leaks, 1 if anything leaks, 2 for errors, and 3 if no leak was found but the check is
incomplete: patients and slides are known in fewer than two splits, or all tiles of a split are nearly empty, so that
images cannot be compared.
"""

from clipit.config.command_line import read_file_command
from clipit.errors import counted, user_errors

_NOT_COMPARED = 3  # exit status
PIXELS = {
    "choices": ("off", "exact", "near"),
    "default": "near",
    "help": "find identical images (exact), or also similar ones (near); default: near, regardless of leaks.pixels",
}


def main() -> None:
    """Run the command."""
    with user_errors():
        file, options = read_file_command(__doc__, ["comparison"], extra={"--pixels": PIXELS}, needs_reports=False)
        from clipit.distributed import get_processes
        from clipit.workspace.check_leaks import check_leaks

        result = check_leaks(file.run, options.pixels, list(file.comparison.shifted))
        if get_processes().main:
            leaking = (
                counted(result.leaking, "tile or report leaks", "tiles or reports leak") + " into a held-out split"
            )
            incomplete = "" if result.compared_patients else "; the splits may share patients or slides"
            incomplete += "" if result.compared_images else "; images could not be compared across splits"
            print(f"\n{leaking}{incomplete}: {result.path} (and .parquet)")
        complete = result.compared_patients and result.compared_images
        raise SystemExit(1 if result.leaking else 0 if complete else _NOT_COMPARED)
