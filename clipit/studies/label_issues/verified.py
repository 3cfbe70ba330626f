"""Verified labels: read them, and score the ranking of suspicious labels against them."""

import logging
from collections.abc import Sequence, Set
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped

from clipit.annotators.label_table import match_tiles
from clipit.errors import DataError, counted, counted_of, repeats, shortlist
from clipit.evaluation.intervals import Estimate
from clipit.evaluation.label_issues import LabelIssues, score_ranking
from clipit.input_files.csv_tables import read_utf8_csv
from clipit.input_files.data_files import without_decimals
from clipit.input_files.mangled_names import check_rounded
from clipit.input_files.nearby_files import similar_names
from clipit.tiles.tileset import TileSet

logger = logging.getLogger(__name__)

_FIX = "use a CSV file with the columns tile (or id) and label"


def read_verified(path: Path, tiles: TileSet) -> Int64[np.ndarray, " n"]:
    """Read the verified class of each tile from a CSV with the columns tile (or id) and label; -1 where there is none.

    Rows without a label are skipped, and rows for other tiles are counted in the log. Paths of tiles may be written as
    in annotation tables (`match_tiles`). Labels such as 1.0 and 1 are the
    same class, because programs write integers as decimals in columns with empty cells.

    Raises:
        DataError: The file is missing or unreadable, lacks a column, has no label for these tiles, has two labels for
            one tile, writes its name in two ways, or has an unknown class.
    """
    try:
        table = read_utf8_csv(path)
    except FileNotFoundError:
        advice = f"correct label_issues.verified; {similar_names(str(path))}"
        raise DataError("no such file", where=path, fix=advice) from None
    except OSError as error:
        raise DataError(f"unreadable labels: {error}", where=path, fix="save the file as CSV in UTF-8") from error
    key = "tile" if "tile" in table.header else "id"
    missing = [name for name in (key, "label") if name not in table.header]
    if missing:
        listed = ", ".join("tile" if name == "id" else name for name in missing)
        raise DataError(f"missing columns: {listed}", where=path, fix=table.hint(missing) or _FIX)
    row_of = {name: row for row, name in enumerate(tiles.ids.tolist())}
    names, labels = table.header.index(key), table.header.index("label")
    check_rounded([row[names] for row in table.rows], key, lambda row: f"line {table.lines[row]}", path)
    cells = [(row[names].strip(), row[labels].strip()) for row in table.rows]
    tile_of = match_tiles([name for name, label in cells if label], tiles.ids.tolist(), path)
    cells = [(tile_of.get(name, name), label) for name, label in cells]
    kept = [number for number, (name, label) in enumerate(cells) if name in row_of and label]
    checked = [cells[number] for number in kept]
    if not checked:
        raise DataError(
            "no checked tile has a verified label",
            where=path,
            fix="use the ids of the checked tiles, and write the class of each verified tile in the `label` column",
        )
    if others := sorted({name for name, label in cells if label and name not in row_of}):
        count = counted(len(others), "tile that is not", "tiles that are not")
        logger.info(f"note: {path}: ignored labels for {count} among the checked tiles: {shortlist(others)}")
    class_of = _as_classes({label for _, label in checked}, tiles.classes)
    checked = [(name, class_of.get(label, label)) for name, label in checked]
    unknown = sorted({label for _, label in checked} - {*tiles.classes})
    repeated = repeats([name for name, _ in checked], lambda number: f"line {table.lines[kept[number]]}")
    if unknown or repeated:
        problems = [f"unknown classes: {shortlist(unknown)}"] if unknown else []
        if repeated:
            occur = counted(len(repeated), "tile occurs", "tiles occur")
            problems.append(f"{occur} more than once: {shortlist(repeated)}")
        raise DataError("; ".join(problems), where=path, fix="list each tile once, with a class from the configuration")
    verified = np.full(len(tiles), -1, dtype=np.int64)
    for name, label in checked:
        verified[row_of[name]] = tiles.classes.index(label)
    return verified


def _as_classes(labels: Set[str], classes: Sequence[str]) -> dict[str, str]:
    """Map each label that is not a class to the class with the same whole number, such as 1.0 to 1."""
    whole = {_without_decimals(name): name for name in classes}
    return {
        label: whole[_without_decimals(label)] for label in labels - {*classes} if _without_decimals(label) in whole
    }


def _without_decimals(name: str) -> str:
    return str(without_decimals([name])[0])


def score_verified(
    verified: Int64[np.ndarray, " n"],
    tiles: TileSet,
    issues: LabelIssues,
    groups: Shaped[np.ndarray, " n"],
    *,
    resamples: int,
    seed: int,
) -> tuple[dict[str, Estimate], str]:
    """Score suspicious labels against verified ones; also return a sentence with the counts.

    Args:
        verified: Verified class of each tile; -1 where there is none.
        tiles: Checked tiles with their given labels.
        groups: Group of each tile; "" where unknown.
        resamples: Number of bootstrap resamples for the intervals.
    """
    known = np.flatnonzero(verified >= 0)
    wrong = verified[known] != tiles.labels[known]
    flagged = issues.flagged[known]
    scores = score_ranking(wrong, flagged, issues.quality[known], groups[known], resamples=resamples, seed=seed)
    both = known[wrong & flagged]
    n_correct = int((issues.suggested[both] == verified[both]).sum())
    return scores, (
        f"{counted_of(len(known), len(tiles), 'checked tile has', 'checked tiles have')} a verified label; "
        f"for {int(wrong.sum())} of these tiles, the given label is different. Of "
        f"{counted(len(both), 'flagged wrong label')}, the suggested class is correct for {n_correct}."
    )
