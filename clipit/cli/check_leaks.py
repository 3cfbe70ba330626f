"""Find tiles, patients and reports that occur on both sides of a split; the exit status is 1 if there are any."""

from clipit.config.command_line import read_file_command
from clipit.errors import user_errors

PIXELS = {
    "choices": ("off", "exact", "near"),
    "default": "near",
    "help": "compare images: equal pixels (exact), or also similar images (near; default, regardless of leaks.pixels)",
}


def main() -> None:
    """Run the command."""
    with user_errors():
        file, options = read_file_command(__doc__, ["comparison"], extra={"--pixels": PIXELS})
        from clipit.distributed import get_processes
        from clipit.workspace.check_leaks import check_leaks

        path, leaking = check_leaks(file.run, options.pixels, list(file.comparison.shifted))
        if get_processes().main:
            print(f"\n{leaking} tiles and reports leak: {path} (and .parquet)")
        raise SystemExit(1 if leaking else 0)
