"""Read tile masks, named in the column `mask` of a table, and check them against the images."""

import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int, Int16, Int64
from PIL import Image

from clipit.config.data import TilesConfig
from clipit.crash_watch import noted
from clipit.errors import ClipitError, ConfigError, DataError, counted, counted_of, shortlist
from clipit.images.decode import ImageError
from clipit.images.image_readers import FileReader, ZipReader
from clipit.images.read_ahead import read_ahead, reading_threads
from clipit.progress import progress
from clipit.tiles.mask_files import IGNORED, MaskClasses, decode_mask
from clipit.tiles.table import image_root, open_files, open_table, read_columns
from clipit.tiles.tileset import TileSet

_BLOCK = 32  # masks decoded together
_LISTED = 5  # masks listed in a note
_MAX_LINES = 10  # masks listed in an error


@dataclass(frozen=True, eq=False)
class MaskSet:
    """Tiles with a mask; images and masks are read from disk on demand.

    Attributes:
        counts: Pixel counts per tile and class, without ignored pixels; empty before `check_masks`.
    """

    tiles: TileSet
    classes: MaskClasses
    reader: FileReader | ZipReader
    files: Sequence[str]
    rows: Int64[np.ndarray, " n"]
    stamps: Sequence[str]
    counts: Int64[np.ndarray, "m c"]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.tiles)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 over tiles, their µm per pixel, masks and classes."""
        stamps = [self.stamps[row] for row in self.rows.tolist()]
        text = repr(
            (
                self.tiles.fingerprint,
                self.tiles.mpp.tolist(),
                stamps,
                self.classes.names,
                sorted(self.classes.class_of.items()),
            )
        )
        return sha256(text.encode()).hexdigest()[:16]

    def where(self, index: int) -> str:
        """Return the file of a mask, for error messages."""
        return self.reader.where(int(self.rows[index]))

    def read(self, index: int) -> tuple[Image.Image, Int16[np.ndarray, "h w"]]:
        """Read the image of a tile as RGB, and its mask: class of each pixel, -1 if ignored.

        Raises:
            DataError: The image or mask cannot be read, they differ in size, or a mask value is not a class.
        """
        image = self.tiles.read(index)
        row = int(self.rows[index])
        try:
            with noted(self.where(index)):
                return image, decode_mask(self.reader.open(row), self.files[row], image.size, self.classes)
        except ImageError as error:
            raise DataError(
                f"the mask of tile {self.tiles.ids[index]} cannot be used: {error}",
                where=self.where(index),
                fix="correct the mask, segmentation.classes or segmentation.ignore",
            ) from None
        except OSError as error:
            raise DataError(
                f"cannot open the mask of tile {self.tiles.ids[index]}: {error.strerror or error}",
                where=self.where(index),
                fix="restore the file, or correct its permissions",
            ) from error

    def select(self, which: Bool[np.ndarray, " n"] | Int[np.ndarray, " k"] | Sequence[int]) -> "MaskSet":
        """Select tiles by a mask of rows, or by indices in the order given."""
        chosen = np.asarray(which)
        chosen = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.astype(np.int64)
        counts = self.counts[chosen] if len(self.counts) else self.counts
        return replace(self, tiles=self.tiles.select(chosen), rows=self.rows[chosen], counts=counts)

    def of_split(self, name: str) -> "MaskSet":
        """Select the tiles of one split; the result may be empty."""
        return self.select(self.tiles.splits == name)


def open_masks(config: TilesConfig, tiles: TileSet, classes: MaskClasses) -> MaskSet:
    """Open the masks of tiles; tiles without a mask are dropped.

    Args:
        config: Section `tiles`, whose source is a table with a column `mask`.
        tiles: Tiles of that table.
        classes: Classes of the masks.

    Raises:
        ConfigError: The tiles come from a different source.
        DataError: The table has no mask column, no tile has a mask, or files are missing.
    """
    if config.source != "table":
        raise ConfigError(
            f"masks are read from a table, but the tiles come from {config.source}",
            where="tiles.source",
            fix="list the tiles in a table with the columns path and mask, and set tiles.source: table",
        )
    path = Path(config.path).expanduser()
    table = open_table(path)
    mask_column = config.columns.get("mask", "mask")
    # Naming the column makes it required.
    section = config.model_copy(update={"columns": {**config.columns, "mask": mask_column}})
    columns = read_columns(path, section, table, ("id", "path", "mask"))
    ids = columns.get("id") or [posixpath.normpath(cell.replace("\\", "/")) for cell in columns["path"]]
    row_of = {name: row for row, name in enumerate(ids)}
    cells = [columns["mask"][row_of[name]] for name in tiles.ids.tolist()]
    kept = np.flatnonzero([bool(cell) for cell in cells])
    if not len(kept):
        raise DataError(f"no tile has a mask in column {mask_column}", where=path, fix="fill in the mask files")
    files = [posixpath.normpath(cells[index].replace("\\", "/")) for index in kept]
    root = image_root(config.images, path, files)
    reader, stamps = open_files(root, files, path, "error")
    without = len(tiles) - len(kept)
    notes = [f"{counted_of(without, len(tiles), 'tile has', 'tiles have')} no mask"] if without else []
    several = shared_files(files)
    if several:
        notes.append(
            f"{counted(len(several), 'mask file is', 'mask files are')} given for several tiles, which is correct only "
            f"if their masks are the same: {shortlist(several)}"
        )
    empty = np.zeros((0, len(classes.names)), dtype=np.int64)
    return MaskSet(
        tiles.select(kept), classes, reader, files, np.arange(len(kept), dtype=np.int64), stamps, empty, tuple(notes)
    )


def shared_files(files: Sequence[str]) -> list[str]:
    """List the files that occur more than once, with their counts."""
    return [f"{name} ({count} times)" for name, count in Counter(files).items() if count > 1]


def check_masks(masks: MaskSet, unreadable: Literal["error", "quarantine"]) -> MaskSet:
    """Decode every mask once, count its pixels by class, and drop masks with only ignored pixels.

    The notes state the fraction of ignored pixels, and warn if some masks seem to encode a class as an ignored value.

    Args:
        unreadable: `error` to raise one error that lists all unusable masks; `quarantine` to drop, count and list them.

    Raises:
        DataError: Masks are unusable, no mask has a labelled pixel, or a class has no pixel in any mask.
    """
    names = masks.classes.names
    pixels = np.zeros((len(masks), len(names) + 1), dtype=np.int64)  # the last column counts ignored pixels
    problems: dict[int, ClipitError] = {}

    def count(index: int) -> Int64[np.ndarray, " c"] | ClipitError:
        try:
            return pixel_counts(masks.read(index)[1], len(names))
        except ClipitError as error:
            return error

    blocks = [range(start, min(start + _BLOCK, len(masks))) for start in range(0, len(masks), _BLOCK)]
    with reading_threads() as pool, progress("checking masks", len(masks)) as advance:
        for block, results in read_ahead(blocks, count, pool):
            for index, result in zip(block, results, strict=True):
                if isinstance(result, ClipitError):
                    problems[index] = result
                else:
                    pixels[index] = result
            advance(len(block))
    if problems and unreadable == "error":
        raise _unusable(masks, problems)
    ids, counts = masks.tiles.ids, pixels[:, :-1]
    ignored = [i for i in range(len(masks)) if i not in problems and not counts[i].any()]
    notes = list(masks.notes)
    if problems:
        listed = shortlist([f"{ids[i]} ({str(error).splitlines()[0]})" for i, error in problems.items()], _LISTED)
        notes.append(f"dropped {counted(len(problems), 'mask')} (cannot be used): {listed}")
    if ignored:
        listed = shortlist([str(ids[i]) for i in ignored], _LISTED)
        notes.append(
            f"{counted(len(ignored), 'mask was', 'masks were')} dropped, because every pixel is ignored: {listed}"
        )
    kept = sorted({*range(len(masks))} - {*problems} - {*ignored})
    if not kept:
        first = next(iter(problems.values()), None)
        raise DataError(
            "no mask has a labelled pixel: every pixel is ignored"
            if ignored or first is None
            else f"no mask can be used; the first problem: {first.what}",
            where=masks.tiles.where,
            fix="correct segmentation.ignore, or the masks" if ignored or first is None else first.fix,
        )
    notes += ignored_notes(pixels[kept], [str(ids[i]) for i in kept], masks.classes)
    checked = replace(masks, counts=counts, notes=tuple(notes)).select(kept)
    absent = [name for name, n in zip(names, checked.counts.sum(axis=0).tolist(), strict=True) if not n]
    if absent:
        raise DataError(
            f"no mask contains a pixel of {', '.join(absent)}",
            where=masks.tiles.where,
            fix="correct the values in segmentation.classes, or remove the class",
        )
    return checked


def pixel_counts(codes: Int16[np.ndarray, "h w"], classes: int) -> Int64[np.ndarray, " c"]:
    """Count the pixels of each class of a mask, followed by its ignored pixels."""
    return np.bincount(np.where(codes == IGNORED, classes, codes).ravel(), minlength=classes + 1)


def ignored_notes(pixels: Int64[np.ndarray, "n c"], ids: Sequence[str], classes: MaskClasses) -> list[str]:
    """Describe ignored pixels, and masks in which a class may be encoded as an ignored value.

    Args:
        pixels: Pixel counts of each mask by class; the last column counts ignored pixels.
        ids: Tile of each mask.
    """
    ignored, present = pixels[:, -1], (pixels[:, :-1] > 0).sum(axis=1)
    if not ignored.any():
        return []
    share = ignored.sum() / pixels.sum()
    notes = [
        f"{counted_of(int((ignored > 0).sum()), len(ids), 'mask contains', 'masks contain')} ignored pixels "
        f"({', '.join(map(str, classes.ignore))}), {share:.2%} of all mask pixels"
    ]
    doubtful = (ignored > 0) & (present == 1)
    if doubtful.any() and ((ignored == 0) & (present > 1)).any():
        listed = shortlist([ids[index] for index in np.flatnonzero(doubtful).tolist()], _LISTED)
        notes.append(
            f"WARNING: {counted_of(int(doubtful.sum()), len(ids), 'mask contains', 'masks contain')} only one class "
            "and ignored pixels, while others contain several classes and no ignored pixels; if masks from different "
            f"sources encode a class differently, such as by 1 and 255, rewrite them with one value: {listed}"
        )
    return notes


def _unusable(masks: MaskSet, problems: Mapping[int, ClipitError]) -> ClipitError:
    """Combine the errors of masks that cannot be used."""
    errors = list(problems.values())
    if len(errors) == 1:
        return errors[0]
    lines = "".join(f"\n    {error.what}" for error in errors[:_MAX_LINES])
    more = f"\n    ... and {len(errors) - _MAX_LINES} more" if len(errors) > _MAX_LINES else ""
    fixes = "; ".join(dict.fromkeys(error.fix for error in errors[:_MAX_LINES]))
    return DataError(
        f"{len(errors)} of {counted(len(masks), 'mask')} cannot be used:{lines}{more}",
        where=masks.tiles.where,
        fix=f"{fixes}; or set tiles.unreadable: quarantine to drop and list such masks",
    )
