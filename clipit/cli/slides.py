"""Whole-slide images: tile their tissue (`tile`), score them (`score`), map them (`map`), or compare arms (`compare`).

SLIDES are slide files, folders of slides, or one table (.csv, .tsv, .parquet) with a `slide` column and, if known,
columns `label`, `split`, `group` (patient) and `mpp` (micrometres per pixel of the finest level).
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from clipit.config.computing_options import OptionParser, add_computing_options, positive
from clipit.config.paths import option_path, option_text, run_path
from clipit.errors import user_errors
from clipit.prompts.early_check import check_prompt_file


def main() -> None:
    """Run the subcommand named by the first argument."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        with user_errors():
            COMMANDS[name](rest)
        return
    if name in ("-h", "--help"):
        usage = f"usage: clipit slides {{{','.join(COMMANDS)}}} ..."
        print(f"{usage}\n\n{__doc__}\nRun `clipit slides COMMAND --help` for the options of a command.")
        raise SystemExit(0)
    print(f"error: clipit slides has no command {name!r}\n  fix: use one of {', '.join(COMMANDS)}", file=sys.stderr)
    raise SystemExit(2)


def tile(arguments: list[str]) -> None:
    """Tile the tissue of slides."""
    parser = _parser("tile", "Detect the tissue on slides and lay a grid of tiles over it.")
    _add_inputs(parser)
    parser.add_argument(
        "--write",
        choices=("png", "h5"),
        action="append",
        default=[],
        help="also write the tiles as PNG files, or their coordinates in TRIDENT's HDF5 format (may be repeated)",
    )
    options = vars(parser.parse_args(arguments))
    from clipit.api.slides import tile_slides

    result = tile_slides(options.pop("slides"), options.pop("out"), extras=options.pop("write"), **options)
    _print(result.text)


def score(arguments: list[str]) -> None:
    """Score slides with a classifier, or zero-shot with class prompts."""
    parser = _parser(
        "score",
        "Score slides tile by tile with a classifier, or zero-shot with class prompts, and pool the tile scores into "
        "one score per class and slide. If the slide table has labels, the scores are evaluated against them.",
    )
    _add_inputs(parser)
    _add_model(parser)
    options = vars(parser.parse_args(arguments))
    check_prompt_file(options["prompts"])
    from clipit.api.slides import score_slides

    result = score_slides(options.pop("slides"), options.pop("out"), **options)
    _print(result.text)


def draw_maps(arguments: list[str]) -> None:
    """Score slides, and write heat maps, QuPath files and a page per slide."""
    parser = _parser(
        "map",
        "Score slides as `score` does. For each slide, write overlays, a pyramidal heat map (OME-TIFF), its tiles and "
        "regions for QuPath (GeoJSON), and a page with a zoomable overview.",
    )
    _add_inputs(parser)
    _add_model(parser)
    parser.add_argument(
        "--snippets",
        metavar="CONFIG",
        help="show the snippets of this configuration's reports that are nearest to the top tiles",
    )
    parser.add_argument(
        "--top", type=positive, default=8, metavar="N", help="tiles shown per class on a slide's page (default: 8)"
    )
    options = vars(parser.parse_args(arguments))
    check_prompt_file(options["prompts"])
    from clipit.api.slides import score_slides

    result = score_slides(options.pop("slides"), options.pop("out"), maps=True, **options)
    _print(result.text)


def compare_runs(arguments: list[str]) -> None:
    """Compare the arms of runs on slide labels."""
    parser = _parser(
        "compare",
        "Score slides with the classifiers of several runs, and compare their arms on slide labels. The "
        "arm and seed of each run are read from its configuration.",
    )
    _add_inputs(parser)
    parser.add_argument(
        "--runs",
        type=run_path,
        nargs="+",
        required=True,
        metavar="RUN",
        help="folders of runs, or folders that contain runs, such as outputs/runs/NAME",
    )
    parser.add_argument(
        "--reference", type=option_text, required=True, metavar="ARM", help="arm that the others are compared with"
    )
    _add_leaks_policy(parser)
    zero_shot = parser.add_argument_group("zero-shot VLM as an additional arm")
    zero_shot.add_argument("--vlm", type=option_text, metavar="NAME", help="name or folder of the VLM")
    zero_shot.add_argument(
        "--prompts", type=option_text, metavar="NAME", help="prompt file or packaged set with the same classes"
    )
    add_computing_options(parser.add_argument_group("computing"))
    options = vars(parser.parse_args(arguments))
    check_prompt_file(options["prompts"])
    from clipit.api.slides import compare_slides

    result = compare_slides(options.pop("slides"), options.pop("runs"), options.pop("out"), **options)
    _print(result.text)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "tile": tile,
    "score": score,
    "map": draw_maps,
    "compare": compare_runs,
}
"""Subcommands by name."""


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    return OptionParser(prog=f"clipit slides {name}", description=description, allow_abbrev=False)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "slides", type=option_path, nargs="+", metavar="SLIDES", help="slides, folders of slides, or one table of them"
    )
    parser.add_argument("--out", type=option_path, required=True, metavar="FOLDER", help="folder to write to")
    parser.add_argument(
        "--images", type=option_path, metavar="FOLDER", help="folder that the paths in a table are relative to"
    )
    parser.add_argument(
        "--mpp",
        type=float,
        metavar="UM",
        help="micrometres per pixel of the finest level, for slides without this metadata",
    )
    grid = parser.add_argument_group("tiles")
    grid.add_argument(
        "--tile-mpp",
        type=float,
        metavar="UM",
        help="micrometres per pixel of the tiles (default: the model's; `tile`: 0.5)",
    )
    grid.add_argument(
        "--tile-pixels",
        type=positive,
        metavar="N",
        help="edge length of a tile in pixels (default: the model's; `tile`: 224)",
    )
    grid.add_argument(
        "--overlap",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="overlap of adjacent tiles as a fraction of their edge length (default: 0)",
    )
    grid.add_argument(
        "--min-tissue",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="fraction of a tile that must be tissue (default: 0.5)",
    )
    grid.add_argument(
        "--contours",
        type=option_path,
        metavar="PATH",
        help="GeoJSON contours of the tissue (QuPath, TRIDENT) instead of detection: a file, or a folder with one file "
        "per slide",
    )


def _add_leaks_policy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--leaks-policy",
        choices=("error", "note"),
        default="error",
        help="what to do if patients of labelled slides are in two splits, or a run was trained on tiles of "
        "patients with test slides (default: error)",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    _add_leaks_policy(parser)
    model = parser.add_argument_group("model")
    model.add_argument(
        "--classifier",
        type=option_text,
        metavar="PATH",
        help="folder of a run, its classifier/ folder, or a repository on the Hub",
    )
    model.add_argument(
        "--prompts",
        type=option_text,
        metavar="NAME",
        help="score zero-shot with class prompts: prompt file, packaged set, or set stored in the classifier",
    )
    model.add_argument("--classes", metavar='"A; B"', help="score zero-shot with these class names as prompts")
    model.add_argument("--vlm", type=option_text, metavar="NAME", help="name or folder of the VLM that encodes prompts")
    add_computing_options(model)


def _print(text: Any) -> None:
    from clipit.distributed import get_processes

    if get_processes().main:
        print(text)
