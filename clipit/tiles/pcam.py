"""Read PatchCamelyon in its published layout: six h5 files in three splits."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from clipit.config.run import TilesConfig
from clipit.errors import DataError, counted, shortlist
from clipit.images.decode import ImageError
from clipit.images.image_readers import LazyHandle, file_stamp
from clipit.input_files.folder_files import FolderFiles, list_files
from clipit.input_files.git_lfs import check_pointer
from clipit.tiles.datasets import DATASETS
from clipit.tiles.source import SourceTiles
from clipit.tiles.splits import configured_splits, split_map

if TYPE_CHECKING:
    import h5py

PCAM = DATASETS["pcam"]
COUNTS = {split: count for split, _, count in PCAM.counts}
"""Published number of tiles by split."""
SIDE = 96  # edge length of a tile in pixels
_SPLIT_NAMES = {"train": "train", "valid": "validation", "test": "test"}
_FILES = frozenset(f"camelyonpatch_level_2_split_{split}_{kind}.h5" for split in COUNTS for kind in "xy")
_CHUNK_CACHE = 64 * 2**20  # bytes; enough for a complete chunk, so that neighbouring rows are decompressed only once


class H5Reader:
    """Reader for rows of the `x` data sets in several h5 files; rows are numbered across the files."""

    def __init__(self, files: Sequence[Path], counts: Sequence[int]) -> None:
        """Create the reader for files with the given numbers of rows."""
        self._files = tuple(files)
        self._starts = [sum(counts[:index]) for index in range(len(counts))]
        self._handles = [LazyHandle(partial(_open, file)) for file in files]

    def _locate(self, row: int) -> tuple[int, int]:
        file = max(index for index, start in enumerate(self._starts) if start <= row)
        return file, row - self._starts[file]

    def read(self, row: int) -> Image.Image:
        """Read the image for a row."""
        file, inner = self._locate(row)
        handle = self._handles[file].get()
        try:
            return Image.fromarray(handle["x"][inner])
        except (OSError, KeyError, RuntimeError, ValueError) as error:  # raised by h5py for a damaged chunk
            raise ImageError(f"{type(error).__name__}: {error}") from error

    def where(self, row: int) -> str:
        """Return the file and the row in it, for error messages."""
        file, inner = self._locate(row)
        return f"{self._files[file]}, x[{inner}]"


def read_pcam(config: TilesConfig) -> SourceTiles:
    """Read PatchCamelyon's published splits; the id of a tile is `<split>/<row>`, numbered as in the files.

    The files may be in the folder or any of its subfolders. Splits that tiles.splits does not use are not read.

    Raises:
        DataError: A file is missing, still compressed, or differs from the published file.
    """
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise PCAM.missing("PatchCamelyon's folder does not exist", root)
    splits = [split for split in split_map(config.splits, _SPLIT_NAMES) if split in COUNTS]
    unknown = sorted(set(configured_splits(config.splits)) - set(COUNTS))
    if unknown:
        raise DataError(
            f"PatchCamelyon has no split {unknown[0]}", where="tiles.splits", fix=f"use {', '.join(COUNTS)}"
        )
    listed = list_files(root, lambda path: path.name.removesuffix(".gz") in _FILES)
    files = [_find(root, listed, f"camelyonpatch_level_2_split_{split}_x.h5") for split in splits]
    label_files = [_find(root, listed, f"camelyonpatch_level_2_split_{split}_y.h5") for split in splits]
    labels = [
        _read_labels(file, label_file, split, config.check_counts)
        for split, file, label_file in zip(splits, files, label_files, strict=True)
    ]
    sizes = [len(values) for values in labels]
    total = sum(sizes)
    return SourceTiles(
        ids=[f"{split}/{row:06d}" for split, size in zip(splits, sizes, strict=True) for row in range(size)],
        labels=[PCAM.classes[value] for values in labels for value in values],
        source_splits=[split for split, size in zip(splits, sizes, strict=True) for _ in range(size)],
        groups=[""] * total,
        mpp=[PCAM.mpp] * total,
        stamps=[stamp for file, size in zip(files, sizes, strict=True) for stamp in [file_stamp(file)] * size],
        reader=H5Reader(files, sizes),
        where=str(root),
        classes=PCAM.classes,
        split_names=_SPLIT_NAMES,
        notes=tuple(
            f"not as published: {split} has {counted(size, 'tile')} instead of {COUNTS[split]}"
            for split, size in zip(splits, sizes, strict=True)
            if size != COUNTS[split]
        ),
    )


def _find(root: Path, listed: FolderFiles, name: str) -> Path:
    files = [path for path in listed.files if path.name == name]
    if len(files) > 1:
        raise DataError(f"{name} occurs twice: {files[0]} and {files[1]}", where=root, fix="remove one")
    if files:
        return files[0]
    dangling = [path for path in listed.dangling if path.name == name]
    if dangling:
        raise PCAM.missing(f"{name} is a link whose target does not exist", dangling[0], "correct the link")
    packed = [path for path in listed.files if path.name == name + ".gz"]
    raise PCAM.missing(f"{name} is missing", root, f"gunzip {packed[0]}" if packed else "")


def _open(path: Path) -> "h5py.File":
    import h5py

    return h5py.File(path, "r", rdcc_nbytes=_CHUNK_CACHE)


def _read_labels(images: Path, labels: Path, split: str, check_counts: bool) -> list[int]:
    """Read the labels of a split after checking the shapes of both files."""
    try:
        with _open(images) as x_file, _open(labels) as y_file:
            shape, dtype, label_shape = x_file["x"].shape, x_file["x"].dtype, y_file["y"].shape
            values = y_file["y"][...].reshape(-1).tolist()
    except (OSError, KeyError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        check_pointer(images)
        check_pointer(labels)
        raise PCAM.missing(
            f"not readable as PatchCamelyon's h5 files: {error}", f"{images} and {labels.name}"
        ) from error
    expected = COUNTS[split] if check_counts else (shape[0] if shape else 0)
    if shape != (expected, SIDE, SIDE, 3) or dtype != "uint8":
        smaller = len(shape) == 4 and shape[1:] == (SIDE, SIDE, 3) and dtype == "uint8"
        raise PCAM.missing(
            f"expected {counted(expected, 'tile')} of {SIDE} x {SIDE} x 3 uint8, found {dtype} {list(shape)}",
            images,
            "complete the copy, or set tiles.check_counts: false if it is a subset" if smaller else "",
        )
    others = sorted({str(value) for value in values} - {"0", "1", "0.0", "1.0", "False", "True"})
    if len(values) != expected or others:
        actual = f"other values: {shortlist(others)}" if others else list(label_shape)
        raise PCAM.missing(f"expected {counted(expected, 'label')} of 0 or 1, found {actual}", labels)
    return [int(value) for value in values]
