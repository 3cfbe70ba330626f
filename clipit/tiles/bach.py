"""Read BACH (ICIAR 2018) in its published layout: 400 breast micrographs, split as in THUNDER and eva."""

import csv
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from clipit.config.run import TilesConfig
from clipit.errors import counted, counted_of, shortlist
from clipit.images.decode import ImageError, decode
from clipit.images.image_files import image_files
from clipit.images.image_readers import FileReader, Reader, file_stamp
from clipit.tiles.datasets import DATASETS
from clipit.tiles.source import SourceTiles

BACH = DATASETS["bach"]
SIZE = (2048, 1536)
"""Width and height of a micrograph in pixels."""
CROP = 512
"""Edge length of a crop in pixels."""
SPLITS_FILE = Path(__file__).parent / "data" / "bach_splits.csv"
"""CSV file with the columns `file`, `class` and `split`.

The test split is the one on which eva (kaiko-ai/eva, bach.py) reports scores. The validation split is the one that
THUNDER holds out from the rest, by patient. All other micrographs are in the training split.
"""
_FOLDERS = ("Photos", "ICIAR2018_BACH_Challenge/Photos", "")
_Box = tuple[int, int, int, int]  # left, upper, right, lower in pixels


class CropReader:
    """Reader for crops of micrographs; caches the last micrograph, since its crops are usually read consecutively."""

    def __init__(self, root: Path, files: Sequence[str], boxes: Sequence[_Box]) -> None:
        """Create the reader.

        Args:
            files: Path of the micrograph for each row, relative to `root`.
            boxes: Box of the crop for each row, in pixels.
        """
        self._root = root
        self._files = tuple(files)
        self._boxes = tuple(boxes)
        self._last: tuple[str, Image.Image] | None = None

    def read(self, row: int) -> Image.Image:
        """Decode the crop for a row."""
        last = self._last  # read the attribute once, because another thread may replace it
        if last is None or last[0] != self._files[row]:
            last = (self._files[row], decode(self._root / self._files[row]))
            self._last = last
        micrograph, (left, upper, right, lower) = last[1], self._boxes[row]
        if micrograph.width < right or micrograph.height < lower:
            raise ImageError(
                f"the micrograph has {micrograph.width} x {micrograph.height} pixels; published micrographs have "
                f"{SIZE[0]} x {SIZE[1]}"
            )
        return micrograph.crop((left, upper, right, lower))

    def where(self, row: int) -> str:
        """Return the micrograph and box for a row, for error messages."""
        return f"{self._root / self._files[row]}, pixels {self._boxes[row]}"

    def __getstate__(self) -> dict[str, object]:
        """Drop the cached micrograph before pickling."""
        return self.__dict__ | {"_last": None}


def bach_splits() -> list[dict[str, str]]:
    """Read the rows (file, class, split) of the packaged split."""
    with SPLITS_FILE.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def read_bach(config: TilesConfig) -> SourceTiles:
    """Read BACH's micrographs.

    With `photos: resize`, they are read whole and resized; with `photos: crops`, as 3 x 4 crops of 512 px. The id is
    the file name, or `<file>#<row>,<column>` for a crop. The group is the micrograph, because patients are not
    published for every micrograph; the validation split is held out by patient.

    Raises:
        DataError: Micrographs are missing.
    """
    root = _micrograph_folder(Path(config.path).expanduser())
    rows = bach_splits()
    files = [f"{row['class']}/{row['file']}" for row in rows]
    missing = [file for file in files if not (root / file).is_file()]
    if missing:
        raise BACH.missing(
            f"{counted_of(len(missing), len(files), 'micrograph is', 'micrographs are')} missing: {shortlist(missing)}",
            root,
        )
    present = {f"{name}/{file}" for name in BACH.classes for file in image_files(root / name, config.unreadable).images}
    extra = sorted(present - set(files))
    notes = (f"{counted(len(extra), 'unpublished micrograph')} dropped: {shortlist(extra)}",) if extra else ()
    boxes: list[_Box | None] = list(_grid()) if config.photos == "crops" else [None]
    crops = [(row, box) for row in range(len(rows)) for box in boxes]
    names = [files[row] for row, _ in crops]
    stamp_of = {file: file_stamp(root / file) for file in files}
    reader: Reader = FileReader(root, names)
    if config.photos == "crops":
        reader = CropReader(root, names, [box for _, box in crops if box is not None])
    return SourceTiles(
        ids=[_tile_id(rows[row]["file"], box) for row, box in crops],
        labels=[rows[row]["class"] for row, _ in crops],
        source_splits=[rows[row]["split"] for row, _ in crops],
        groups=[rows[row]["file"] for row, _ in crops],
        mpp=[BACH.mpp] * len(crops),
        stamps=[stamp_of[name] for name in names],
        reader=reader,
        where=str(root),
        classes=BACH.classes,
        notes=notes,
    )


def _micrograph_folder(path: Path) -> Path:
    for name in _FOLDERS:
        if all((path / name / folder).is_dir() for folder in BACH.classes):
            return path / name
    raise BACH.missing(f"no folder with {', '.join(BACH.classes)}", path)


def _grid() -> list[_Box]:
    lefts = range(0, SIZE[0] - CROP + 1, CROP)
    uppers = range(0, SIZE[1] - CROP + 1, CROP)
    return [(left, upper, left + CROP, upper + CROP) for upper in uppers for left in lefts]


def _tile_id(file: str, box: _Box | None) -> str:
    return file if box is None else f"{file}#{box[1] // CROP},{box[0] // CROP}"
