"""Write consensus masks as files that `clipit segment` reads, with statistics on the annotators."""

import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from PIL import Image

from clipit.annotators.agreement import krippendorff_alpha
from clipit.annotators.pixels import PixelConsensus, PixelPatterns, annotator_dice
from clipit.config.file import ConfigFile
from clipit.config.paths import to_file_name
from clipit.config.run import LabelsConfig, TilesConfig
from clipit.errors import ClipitError, ConfigError, DataError, counted, shortlist
from clipit.output_files.artifacts import fingerprint, locked, whole_file, write_json
from clipit.output_files.whole_files import write_array, write_rows, write_text
from clipit.progress import progress
from clipit.reporting.annotator_masks_page import DisputedMask, annotator_masks_page
from clipit.reporting.thumbnails import picture_uri
from clipit.tiles.cells import text_cells
from clipit.tiles.load_tiles import read_tiles
from clipit.tiles.mask_annotations import AnnotatorMasks, read_annotator_masks
from clipit.tiles.mask_files import MaskClasses
from clipit.tiles.masks import ignored_notes, pixel_counts
from clipit.tiles.table import open_table
from clipit.versions import git_commit, versions

_IGNORE = 255  # value of pixels without a label if `segmentation.ignore` is empty
_MAX_PROBLEMS = 10  # maximum number of problems that an error lists
_ALL, _TRAINING, _TEST = "all tiles", "training and validation tiles", "test tiles"
_COLUMNS = ("mask_consensus", "mask_confident")


def write_annotator_masks(
    file: ConfigFile, table: Path, *, files: Path | None = None, confidence: float = 0.9, shown: int = 24
) -> tuple[Path, Path]:
    """Write the consensus of masks from several annotators to `<output>/annotators/<name>/masks/`.

    If the tile table has a test split, annotator skill is estimated separately on test tiles and on all other tiles.
    Three folders are written. `consensus/` contains the most probable class of each pixel as PNG, with the values of
    `segmentation.classes`. `confident/` contains the same masks, but ignores pixels whose posterior is below
    `confidence`. `posterior/` contains the class probabilities [c, h, w] as float16 in .npy. tiles.csv is the tile
    table with the additional columns mask_consensus and mask_confident; `clipit segment` reads the column that
    `tiles.columns.mask` names. Each mask is read twice, and only one tile is in memory at a time.

    Args:
        file: Configuration with tiles from a table and `segmentation.classes`.
        table: Table with the columns `tile`, `annotator` and `mask`.
        files: Folder or zip to which the paths of the masks are relative; None for the folder of the table.
        confidence: Posterior below which pixels of `confident/` are ignored.
        shown: Number of tiles shown on the page: those with the largest fraction of uncertain pixels.

    Returns:
        Path of the page, masks.html (masks.json contains its numbers), and the image folder, to which the
        paths in tiles.csv are relative.

    Raises:
        ConfigError: The tiles do not come from a table, no classes are named, or an option is out of range.
        DataError: A table or a mask is invalid; problems with masks are reported in one error.
    """
    config, section = file.run, file.segmentation
    if config.tiles.source != "table" or not section.classes:
        raise ConfigError(
            "masks from several annotators require tiles from a table, and mask classes",
            where="tiles.source and segmentation.classes",
            fix="set tiles.source: table, and segmentation.classes to the pixel value of each class, such as "
            "{stroma: 0, gland: 1}",
        )
    if not 0 <= confidence <= 1 or shown < 0:
        raise ConfigError(
            f"--confidence {confidence:g} or --shown {shown} is out of range",
            where="the command line",
            fix="use a confidence from 0 to 1, and 0 tiles or more",
        )
    classes = MaskClasses(tuple(section.classes), section.class_of, section.ignore)
    unlabelled = config.tiles.model_copy(update={"labels": LabelsConfig(kind="none"), "annotations": None})
    quarantine = config.tiles.unreadable == "quarantine"  # otherwise, an image is decoded when its masks are read
    tiles = read_tiles(unlabelled, check=False, decode=quarantine, hold_out=False)
    masks = read_annotator_masks(table, files, tiles, classes)
    parts = _parts(masks, tested=bool((tiles.splits == "test").any()))
    patterns = {part: PixelPatterns(masks.annotators, classes.names) for part in dict.fromkeys(parts)}
    ignored = _count_patterns(masks, patterns, parts)
    consensus = {part: counter.consensus() for part, counter in patterns.items()}
    if all(estimate.estimates is None for estimate in consensus.values()):
        raise DataError(
            "no pixel has labels from two annotators, so neither their skill nor a consensus can be estimated",
            where="--masks",
            fix="let several annotators draw masks of the same tiles",
        )
    folder = config.output / "annotators" / config.name / "masks"
    with locked(folder):  # another command may be writing the same files
        uncertain = _write_masks(masks, patterns, consensus, parts, confidence, folder)
        root, left_out = _write_table(config.tiles, masks, folder)
        record = _describe(masks, consensus, parts, confidence, uncertain, [*ignored, *left_out])
        write_json(folder / "masks.json", record | {"commit": git_commit(), "versions": versions()})
        path = folder / "masks.html"
        worst = sorted(range(len(masks.tiles)), key=lambda row: (-uncertain[row], str(masks.tiles.ids[row])))[:shown]
        disputed = [DisputedMask(str(masks.tiles.ids[row]), _picture(masks, row), uncertain[row]) for row in worst]
        write_text(path, annotator_masks_page(f"{config.name}: masks by several annotators", record, disputed))
    return path, root


def _parts(masks: AnnotatorMasks, *, tested: bool) -> list[str]:
    """Return the part of the data set to which each tile belongs; annotator skill is estimated for each part.

    Args:
        tested: Whether the data set has test tiles, with or without masks.
    """
    if not tested:
        return [_ALL] * len(masks.tiles)
    return [_TEST if split == "test" else _TRAINING for split in masks.tiles.splits.tolist()]


def _count_patterns(masks: AnnotatorMasks, patterns: Mapping[str, PixelPatterns], parts: Sequence[str]) -> list[str]:
    """Count the label patterns of all tiles by part, and return notes on ignored pixels.

    Raises:
        DataError: Masks are invalid; all problems are reported in one error.
    """
    problems: list[ClipitError] = []
    drawn = {key: np.zeros(len(masks.classes.names) + 1, dtype=np.int64) for key in masks.row_of}
    with progress("reading masks", len(masks.tiles)) as advance:
        for row in range(len(masks.tiles)):
            try:
                counter = patterns[parts[row]]
                labels = masks.read(row)
                counter.add(counter.encode(labels))
                for name, codes in zip(masks.annotators, labels, strict=True):
                    if (key := (str(masks.tiles.ids[row]), name)) in drawn:
                        drawn[key] = pixel_counts(codes, len(masks.classes.names))
            except ClipitError as error:
                problems.append(error)
            advance(1)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        more = len(problems) - _MAX_PROBLEMS
        lines = [error.what for error in problems[:_MAX_PROBLEMS]] + ([f"and {more} more"] if more > 0 else [])
        raise DataError(
            f"{counted(len(problems), 'tile has', 'tiles have')} masks that cannot be used:\n    "
            + "\n    ".join(lines),
            where=masks.tiles.where,
            fix=problems[0].fix,
        )
    names = [f"{tile} by {name}" for tile, name in drawn]
    return ignored_notes(np.stack([*drawn.values()]), names, masks.classes)


def _write_masks(
    masks: AnnotatorMasks,
    patterns: Mapping[str, PixelPatterns],
    consensus: Mapping[str, PixelConsensus],
    parts: Sequence[str],
    confidence: float,
    folder: Path,
) -> list[float]:
    """Write the files of each tile; return the fraction of labelled pixels whose posterior is below `confidence`."""
    values = _pixel_values(masks.classes)
    uncertain = []
    with progress("writing masks", len(masks.tiles)) as advance:
        for row, name in _names(masks):
            posteriors = consensus[parts[row]].posteriors(patterns[parts[row]].encode(masks.read(row)))
            best, labelled = posteriors.max(axis=2), posteriors.any(axis=2)
            codes = np.where(labelled, posteriors.argmax(axis=2), len(values) - 1)
            _write_png(folder / "consensus" / f"{name}.png", values[codes])
            confident = labelled & (best >= confidence)
            _write_png(folder / "confident" / f"{name}.png", values[np.where(confident, codes, len(values) - 1)])
            write_array(folder / "posterior" / f"{name}.npy", posteriors.transpose(2, 0, 1).astype(np.float16))
            uncertain.append(float((labelled & ~confident).sum() / max(int(labelled.sum()), 1)))
            advance(1)
    return uncertain


def _pixel_values(classes: MaskClasses) -> Int64[np.ndarray, " c_1"]:
    """Return the pixel value of each class in the files, followed by that of ignored pixels."""
    first: dict[int, int] = {}
    for value, code in sorted(classes.class_of.items()):
        first.setdefault(code, value)
    ignore = min(classes.ignore) if classes.ignore else _IGNORE
    if ignore in classes.class_of:
        raise ConfigError(
            f"{ignore} is the value of a class, so it cannot mark pixels without a label",
            where="segmentation.ignore",
            fix="set a value for ignored pixels",
        )
    return np.asarray([*(first[code] for code in range(len(classes.names))), ignore], dtype=np.int64)


def _write_png(path: Path, values: Int64[np.ndarray, "h w"]) -> None:
    image = Image.fromarray(values.astype(np.uint8 if values.max(initial=0) <= 255 else np.uint16))
    with whole_file(path) as temporary:
        image.save(temporary, format="PNG")


def _names(masks: AnnotatorMasks) -> Iterator[tuple[int, str]]:
    """Yield each row with a file name: the tile's id, or a valid name with a hash if the id is not a file name."""
    for row, tile in enumerate(masks.tiles.ids.tolist()):
        name = to_file_name(posixpath.splitext(tile)[0])
        yield row, name if name == tile else f"{name or 'tile'}-{fingerprint(tile)[:8]}"


def _write_table(section: TilesConfig, masks: AnnotatorMasks, folder: Path) -> tuple[Path, list[str]]:
    """Write the tile table with two additional columns.

    Returns:
        The folder to which its paths are relative, and a note on columns that are left out because a cell is not text.
        If the images are in a zip, this is the folder of the written table, and the images must be unpacked into it.
    """
    source = Path(section.path).expanduser()
    table = open_table(source)
    column_names = {str(name): column for name, column in section.columns.items()}
    cells_of = {name: text_cells(table.column(name)) for name in table.names if name not in _COLUMNS}
    columns = {name: cells for name, cells in cells_of.items() if cells is not None}
    left_out = [name for name in cells_of if name not in columns]
    id_name, path_name = column_names.get("id", "id"), column_names.get("path", "path")
    paths = [posixpath.normpath(cell.replace("\\", "/")) for cell in columns[path_name]]
    ids = columns.get(id_name, paths)
    root = Path(section.images).expanduser() if section.images else source.parent
    if root.is_file():
        root = folder
    name_of = {str(masks.tiles.ids[row]): name for row, name in _names(masks)}
    rows = []
    for row, tile in enumerate(ids):
        mask_cells = {
            f"mask_{kind}": Path(os.path.relpath(folder / kind / f"{name_of[tile]}.png", root)).as_posix()
            if tile in name_of
            else ""
            for kind in ("consensus", "confident")
        }
        rows.append({name: cells[row] for name, cells in columns.items()} | mask_cells)
    write_rows(folder / "tiles.csv", [*columns, *_COLUMNS], rows)
    reason = "because a cell contains a list, a line break or other characters that a table cell cannot contain"
    return root, [f"tiles.csv lacks {counted(len(left_out), 'column')} ({shortlist(left_out)}), {reason}"] * bool(
        left_out
    )


def _describe(
    masks: AnnotatorMasks,
    consensus: Mapping[str, PixelConsensus],
    parts: Sequence[str],
    confidence: float,
    uncertain: list[float],
    remarks: list[str],
) -> dict[str, Any]:
    shared = _shared(consensus)
    return {
        "classes": list(masks.classes.names),
        "facts": {
            "tiles": len(masks.tiles),
            "annotators": len(masks.annotators),
            "masks": len(masks.row_of),
            "labelled pixels": int(sum(estimate.pixels.sum() for estimate in consensus.values())),
            "confidence threshold": confidence,
            "mean share of uncertain pixels": round(float(np.mean(uncertain)), 4),
            "annotators of test tiles who also annotated other tiles": "unknown: the tiles have no test split"
            if shared is None
            else ", ".join(shared) or "none",
        },
        "shared_annotators": shared,
        "parts": [
            {"part": name, "tiles": parts.count(name)} | _describe_part(masks, parts, name, estimate)
            for name, estimate in sorted(consensus.items(), reverse=True)
        ],
        "notes": [
            *masks.tiles.notes,
            *masks.notes,
            *remarks,
            *_overruled_notes(consensus),
            *_tie_notes(consensus),
            *_independence_notes(shared, tested=_TEST in consensus),
        ],
    }


def _overruled_notes(consensus: Mapping[str, PixelConsensus]) -> list[str]:
    """List the labels that the consensus overrules although more than half of the annotators agree on them."""
    notes = []
    for part, estimate in sorted(consensus.items(), reverse=True):
        overruled = estimate.overruled()
        if overruled:
            count = sum(pixels for pixels, _ in overruled)
            listed = shortlist([f"{pixels:,} with {labels}" for pixels, labels in overruled])
            notes.append(
                f"{part}: the consensus differs from more than half of the labels on {counted(count, 'pixel')} "
                f"({count / estimate.pixels.sum():.1%}): {listed}"
            )
    return notes


def _tie_notes(consensus: Mapping[str, PixelConsensus]) -> list[str]:
    """Count the pixels whose class is the first of several equally probable classes."""
    return [
        f"{part}: several classes are equally probable on {counted(ties, 'pixel')} "
        f"({ties / estimate.pixels.sum():.1%}), whose consensus is the first of these classes"
        for part, estimate in sorted(consensus.items(), reverse=True)
        if (ties := estimate.ties())
    ]


def _shared(consensus: Mapping[str, PixelConsensus]) -> list[str] | None:
    """List the annotators of test tiles who also annotated training or validation tiles; None without a test split."""
    if _ALL in consensus:
        return None
    if len(consensus) < 2:
        return []
    return sorted({*consensus[_TRAINING].votes.annotators} & {*consensus[_TEST].votes.annotators})


def _independence_notes(shared: list[str] | None, *, tested: bool) -> list[str]:
    if shared is None:
        return [
            "the tiles have no test split, so annotator skill is estimated on all tiles: test tiles held out later "
            "are not independent of the training tiles"
        ]
    if shared:
        return [
            f"WARNING: annotators of the test tiles also annotated training or validation tiles ({shortlist(shared)}), "
            "so scores of a model that learns their habits are too high; remove the rows of their masks in one of the "
            "two parts"
        ]
    if not tested:
        return ["the masks are those of training and validation tiles: no test tile has a mask"]
    return ["no annotator of the test tiles annotated a training or validation tile"]


def _describe_part(masks: AnnotatorMasks, parts: Sequence[str], name: str, consensus: PixelConsensus) -> dict[str, Any]:
    votes, estimates = consensus.votes, consensus.estimates
    labelled: Float64[np.ndarray, " a"] = np.zeros(len(votes.annotators))
    np.add.at(labelled, votes.annotator, consensus.pixels[votes.item])
    dice = annotator_dice(consensus)
    tiles_of_part = {tile for tile, part in zip(masks.tiles.ids.tolist(), parts, strict=True) if part == name}
    return {
        "patterns": len(votes),
        "ties": consensus.ties(),
        "overruled": [{"pixels": pixels, "labels": labels} for pixels, labels in consensus.overruled()],
        "alpha": krippendorff_alpha(votes.counts(), consensus.pixels),
        "method": "label shares: no pixel has labels from two annotators"
        if estimates is None
        else f"EM, {counted(len(estimates.objective), 'iteration')}{'' if estimates.converged else ', not converged'}",
        "priors": None if estimates is None else estimates.priors.tolist(),
        "annotators": [
            {
                "annotator": annotator,
                "tiles": sum(tile in tiles_of_part and author == annotator for tile, author in masks.row_of),
                "pixels": int(labelled[row]),
                "accuracy": None if estimates is None else float(estimates.accuracies[row]),
                "dice": dice[annotator],
                "confusion": None if estimates is None else estimates.confusions[row].tolist(),
            }
            for row, annotator in enumerate(votes.annotators)
        ],
    }


def _picture(masks: AnnotatorMasks, row: int) -> str | None:
    return picture_uri(masks.tiles, row, side=150, quality=80)
