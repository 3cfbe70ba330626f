"""Find tiles, patients and reports that stand on both sides of a split; exit status 1 when there are any."""

from clipit.config.load import read_file_command
from clipit.errors import user_errors

PIXELS = {
    "choices": ("off", "exact", "near"),
    "default": "near",
    "help": "also compare images: equal pixels, or also those that look alike (default: near, whatever the file says)",
}


def main() -> None:
    """Parse, look, print the table and where the list lies."""
    with user_errors():
        file, options = read_file_command(__doc__ or "", ["comparison"], extra={"--pixels": PIXELS})
        from clipit.distributed import get_processes
        from clipit.workspace.check_leaks import check_leaks

        path, leaking = check_leaks(file.run, options.pixels, list(file.comparison.shifted))
        if get_processes().main:
            print(f"\n{leaking} tiles and reports leak: {path} (and .parquet)")
        raise SystemExit(1 if leaking else 0)


if __name__ == "__main__":
    main()
