"""Predict the classes of images with an exported classifier: files, folders, zips, tables of paths, or slides.

The output is a table with the id, the most probable class and the probability of each class for every image. The
command also writes a summary, a page with the most and least certain images, and a list of unreadable images, if there
are any.
"""

import argparse
from typing import TYPE_CHECKING

from clipit.config.computing_options import OptionParser, add_computing_options
from clipit.config.paths import option_path, option_text
from clipit.errors import counted, user_errors
from clipit.prompts.early_check import check_prompt_file

if TYPE_CHECKING:
    from clipit.api.prediction import PredictResult


def main() -> None:
    """Run the command."""
    options = _parser().parse_intermixed_args()
    with user_errors():
        check_prompt_file(options.prompts)
        from clipit.api.prediction import predict

        keywords = vars(options)
        result = predict(keywords.pop("classifier"), keywords.pop("inputs"), keywords.pop("out"), **keywords)

        from clipit.distributed import get_processes

        if get_processes().main:
            print(_summary(result))


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument(
        "classifier", metavar="CLASSIFIER", help="folder of a run, its classifier/ folder, or a repository on the Hub"
    )
    parser.add_argument(
        "inputs",
        type=option_path,
        nargs="+",
        metavar="INPUT",
        help="image file, folder, zip, webdataset shard (.tar), table (.csv, .tsv, .parquet) of paths, or slide (its "
        "tissue tiles)",
    )
    parser.add_argument(
        "--out", type=option_path, required=True, metavar="FILE", help="table to write: .csv or .parquet"
    )
    zero_shot = parser.add_mutually_exclusive_group()
    zero_shot.add_argument(
        "--prompts",
        type=option_text,
        metavar="NAME",
        help="also classify zero-shot: prompt file, packaged set, or set stored in the classifier",
    )
    zero_shot.add_argument(
        "--classes", metavar='"A; B"', help="also classify zero-shot: names separated by semicolons, used as prompts"
    )
    parser.add_argument(
        "--images", type=option_path, metavar="PATH", help="folder or zip that the paths in tables are relative to"
    )
    parser.add_argument(
        "--path-column", type=option_text, metavar="NAME", help="path column of a table (default: path)"
    )
    parser.add_argument(
        "--id-column",
        type=option_text,
        metavar="NAME",
        help="id column of a table (default: id if present, otherwise the path)",
    )
    parser.add_argument("--mpp", type=float, metavar="UM", help="micrometres per pixel of slides without this metadata")
    parser.add_argument(
        "--tile-mpp",
        type=float,
        metavar="UM",
        help="micrometres per pixel of tiles cut from slides (default: as in the classifier's training)",
    )
    parser.add_argument(
        "--vlm", type=option_text, metavar="NAME", help="name or folder of the VLM that encodes new prompts"
    )
    add_computing_options(parser)
    return parser


def _summary(result: "PredictResult") -> str:
    """Summarise the predictions and list their files."""
    from clipit.reporting.prediction_page import SHARES_HEADER, shares_rows
    from clipit.reporting.tables import markdown_table, number

    summary = result.summary
    lines = [
        "",
        f"{counted(summary['predicted'], 'image')} predicted, mean confidence {number(summary['mean_confidence'])}",
    ]
    lines += ["", markdown_table(SHARES_HEADER, shares_rows(summary))]
    if "zero_shot" in summary:
        scores = summary["zero_shot"]
        lines += ["", f"zero-shot ({scores['prompts']}), mean confidence {number(scores['mean_confidence'])}", ""]
        lines.append(markdown_table(SHARES_HEADER, shares_rows(scores)))
    lines.append("")
    if summary["unreadable"]:
        lines.append(f"note: {counted(summary['unreadable'], 'image')} could not be read; see {result.unreadable_file}")
    if summary["note"]:
        lines.append(f"note: {summary['note']}")
    lines += [f"table: {result.table}", f"page: {result.page}", f"summary: {result.summary_file}"]
    return "\n".join(lines)
