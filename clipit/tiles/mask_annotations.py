"""Read masks by several annotators from a table with the columns `tile`, `annotator` and `mask`."""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int16

from clipit.annotators.label_table import match_tiles
from clipit.crash_watch import noted
from clipit.errors import DataError, counted, repeats, shortlist
from clipit.images.decode import ImageError
from clipit.images.image_readers import FileReader, ZipReader
from clipit.input_files.mangled_names import check_rounded
from clipit.tiles.cells import read_cells
from clipit.tiles.mask_files import MaskClasses, decode_mask
from clipit.tiles.masks import shared_files
from clipit.tiles.source import check_annotator_names
from clipit.tiles.table import open_files, open_table
from clipit.tiles.tileset import TileSet

_COLUMNS = ("tile", "annotator", "mask")


@dataclass(frozen=True, eq=False)
class AnnotatorMasks:
    """Masks of tiles by several annotators, read from disk on demand.

    Attributes:
        row_of: Reader row for each (tile id, annotator).
    """

    tiles: TileSet
    annotators: tuple[str, ...]
    classes: MaskClasses
    reader: FileReader | ZipReader
    files: Sequence[str]
    row_of: dict[tuple[str, str], int]
    notes: tuple[str, ...]

    def read(self, index: int) -> Int16[np.ndarray, "a h w"]:
        """Read all masks of a tile: one class per annotator and pixel; -1 for ignored pixels and missing masks.

        Raises:
            DataError: The image or a mask cannot be read, they differ in size, or a mask has a value that is not a
                class.
        """
        width, height = self.tiles.read(index).size
        labels = np.full((len(self.annotators), height, width), -1, dtype=np.int16)
        for number, name in enumerate(self.annotators):
            row = self.row_of.get((str(self.tiles.ids[index]), name))
            if row is None:
                continue
            try:
                with noted(self.reader.where(row)):
                    labels[number] = decode_mask(self.reader.open(row), self.files[row], (width, height), self.classes)
            except ImageError as error:
                raise DataError(
                    f"the mask of tile {self.tiles.ids[index]} by {name} cannot be used: {error}",
                    where=self.reader.where(row),
                    fix="correct the mask, segmentation.classes or segmentation.ignore",
                ) from None
        return labels


def read_annotator_masks(path: Path, images: Path | None, tiles: TileSet, classes: MaskClasses) -> AnnotatorMasks:
    """Read a table with the columns `tile`, `annotator` and `mask`, one row per tile and annotator.

    Args:
        path: Table (csv, tsv or parquet).
        images: Folder or zip that the mask paths are relative to; None for the folder of the table.
        tiles: Tiles, named by id in the column `tile`; masks for other tiles are dropped and counted.
        classes: Classes of the masks.

    Raises:
        DataError: The table cannot be read, lacks columns, has empty cells, names missing files, has two masks by one
            annotator for a tile or names of annotators that differ only in spelling, or has no mask for these tiles.
    """
    table = open_table(path, "--masks")
    missing = [name for name in _COLUMNS if name not in table.names]
    if missing:
        raise DataError(
            f"missing columns: {', '.join(missing)}; the table has: {', '.join(table.names) or 'none'}",
            where=path,
            fix=table.hint(missing) or "write the columns tile (id), annotator and mask (file)",
        )
    cells = {name: read_cells(table.column(name), name, path, table.row_name) for name in _COLUMNS}
    for name in ("tile", "annotator"):
        check_rounded(cells[name], name, table.row_name, path)
    rows = range(len(cells["tile"]))
    empty = [table.row_name(row) for row in rows if not all(cells[name][row] for name in _COLUMNS)]
    tile_of = match_tiles(cells["tile"], tiles.ids.tolist(), path)
    keys = [(tile_of[cells["tile"][row]], cells["annotator"][row]) for row in rows]
    duplicates = repeats([f"{annotator} on {tile}" for tile, annotator in keys], table.row_name)
    problems = [f"{counted(len(empty), 'row')} with an empty cell: {shortlist(empty)}"] if empty else []
    problems += (
        [f"{counted(len(duplicates), 'tile')} with several masks by one annotator: {shortlist(duplicates)}"]
        if duplicates
        else []
    )
    if problems:
        raise DataError(
            "; ".join(problems), where=path, fix="fill in the cells, and keep one mask per tile and annotator"
        )
    check_annotator_names({annotator for _, annotator in keys}, path)
    known = set(tiles.ids.tolist())
    kept = [row for row in rows if keys[row][0] in known]
    others = sorted({tile for tile, _ in keys} - known)
    if not kept:
        raise DataError(
            f"none of the {counted(len(others), 'tile')} in the table is in the data set; the table "
            f"names {shortlist(others, 3) or 'none'}, the data set contains {shortlist(tiles.ids.tolist(), 3)}",
            where=path,
            fix="write the tile ids (if the tile table has no `id` column, the tile paths)",
        )
    files = [posixpath.normpath(cells["mask"][row].replace("\\", "/")) for row in kept]
    reader, _ = open_files(path.parent if images is None else images, files, path, "error", "--mask-files")
    notes = []
    if others:
        notes.append(f"dropped masks for {counted(len(others), 'tile')} outside the data set: {shortlist(others)}")
    if several := shared_files(files):
        notes.append(
            f"WARNING: {counted(len(several), 'mask file is', 'mask files are')} given for several tiles or "
            f"annotators, whose masks are therefore the same: {shortlist(several)}"
        )
    return AnnotatorMasks(
        tiles.select(tiles.among(keys[row][0] for row in kept)),
        tuple(sorted({keys[row][1] for row in kept})),
        classes,
        reader,
        files,
        {keys[row]: index for index, row in enumerate(kept)},
        tuple(notes),
    )
