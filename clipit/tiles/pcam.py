"""PatchCamelyon as published: six h5 files, three official parts."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from clipit.config.run import TilesConfig
from clipit.errors import DataError
from clipit.tiles.readers import LazyHandle, file_stamp
from clipit.tiles.source import Published, SourceTiles
from clipit.tiles.splits import part_map

if TYPE_CHECKING:
    import h5py
    from PIL import Image

CLASSES = ("no_tumor", "tumor")
COUNTS = {"train": 262_144, "valid": 32_768, "test": 32_768}
"""Published numbers of tiles."""
MPP = 0.97
"""Camelyon16 at level 2 (10x); the publication gives 0.97 micrometres per pixel."""
SIDE = 96
_PART_NAMES = {"train": "train", "valid": "validation", "test": "test"}
_SMALLER = "complete the copy, or say tiles.check_counts: false if it was made smaller on purpose"
_CHUNK_CACHE = 64 * 2**20
_PUBLISHED = Published(
    name="PatchCamelyon",
    url="https://zenodo.org/records/2546921",
    licence="CC0 1.0",
    layout="camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5, unpacked with gunzip",
    direct="pcam",
)


class H5Reader:
    """Rows of the `x` data sets of several h5 files, opened once per process.

    Neighbouring rows of a chunked file cost one decompression: the chunk cache holds a whole chunk.
    """

    def __init__(self, files: Sequence[Path], counts: Sequence[int]) -> None:
        """Take the files in order and the number of rows of each; rows are numbered through."""
        self._files = tuple(files)
        self._starts = [sum(counts[:place]) for place in range(len(counts))]
        self._handles = [LazyHandle(partial(_open, file)) for file in files]

    def _place(self, row: int) -> tuple[int, int]:
        place = max(index for index, start in enumerate(self._starts) if start <= row)
        return place, row - self._starts[place]

    def read(self, row: int) -> "Image.Image":
        """The image of a row."""
        from PIL import Image

        place, inner = self._place(row)
        return Image.fromarray(self._handles[place].get()["x"][inner])

    def where(self, row: int) -> str:
        """File and row in it."""
        place, inner = self._place(row)
        return f"{self._files[place]}, x[{inner}]"


def read_pcam(config: TilesConfig) -> SourceTiles:
    """PatchCamelyon's official parts; the id of a tile is `<part>/<row>`, as the files number them.

    The files may lie in the folder or anywhere below it. Parts that tiles.splits leaves out are not read.

    Raises:
        DataError: A file is missing, packed, or not as published.
    """
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise _PUBLISHED.missing("PatchCamelyon's folder is not there", root)
    wanted = [part for part in part_map(config.splits, _PART_NAMES) if part in COUNTS]
    unknown = sorted(set(config.splits.values()) - set(COUNTS))
    if unknown:
        raise DataError(f"PatchCamelyon has no part {unknown[0]}", where="tiles.splits", fix=f"use {', '.join(COUNTS)}")
    files = [_find(root, f"camelyonpatch_level_2_split_{part}_x.h5") for part in wanted]
    ids: list[str] = []
    labels: list[str] = []
    parts: list[str] = []
    stamps: list[str] = []
    notes: list[str] = []
    for part, file in zip(wanted, files, strict=True):
        label_file = _find(root, f"camelyonpatch_level_2_split_{part}_y.h5")
        values = _check(file, label_file, COUNTS[part] if config.check_counts else None)
        if len(values) != COUNTS[part]:
            notes.append(f"not as published: {part} has {len(values)} tiles instead of {COUNTS[part]}")
        stamp = file_stamp(file)
        ids += [f"{part}/{row:06d}" for row in range(len(values))]
        labels += [CLASSES[value] for value in values]
        parts += [part] * len(values)
        stamps += [stamp] * len(values)
    return SourceTiles(
        ids=ids,
        labels=labels,
        parts=parts,
        groups=[""] * len(ids),
        mpp=[MPP] * len(ids),
        stamps=stamps,
        reader=H5Reader(files, [parts.count(part) for part in wanted]),
        where=str(root),
        classes=CLASSES,
        part_names=_PART_NAMES,
        notes=tuple(notes),
    )


def _find(root: Path, name: str) -> Path:
    found = sorted(path for path in root.rglob(name) if path.is_file())
    if len(found) > 1:
        raise DataError(f"{name} is there twice: {found[0]} and {found[1]}", where=root, fix="remove one")
    if found:
        return found[0]
    packed = sorted(root.rglob(name + ".gz"))
    raise _PUBLISHED.missing(f"{name} is not there", root, f"gunzip {packed[0]}" if packed else "")


def _open(path: Path) -> "h5py.File":
    import h5py

    return h5py.File(path, "r", rdcc_nbytes=_CHUNK_CACHE)


def _check(images: Path, labels: Path, published: int | None) -> list[int]:
    """The labels, after a look at the shapes of both files; with `published` None any number of tiles will do."""
    try:
        with _open(images) as x_file, _open(labels) as y_file:
            shape, dtype, label_shape = x_file["x"].shape, x_file["x"].dtype, y_file["y"].shape
            values = [int(value) for value in y_file["y"][...].reshape(-1)]
    except (OSError, KeyError) as error:
        raise _PUBLISHED.missing(
            f"not readable as PatchCamelyon's h5 files: {error}", f"{images} and {labels.name}"
        ) from error
    expected = published if published is not None else (shape[0] if shape else 0)
    if shape != (expected, SIDE, SIDE, 3) or dtype != "uint8":
        raise _PUBLISHED.missing(
            f"expected {expected} tiles of {SIDE} x {SIDE} x 3 uint8, found {dtype} {list(shape)}",
            images,
            _SMALLER if len(shape) == 4 and shape[1:] == (SIDE, SIDE, 3) and dtype == "uint8" else "",
        )
    if len(values) != expected or not set(values) <= {0, 1}:
        raise _PUBLISHED.missing(f"expected {expected} labels 0 or 1, found {list(label_shape)}", labels)
    return values
