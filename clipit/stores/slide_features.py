"""Slide features computed by TRIDENT or CLAM (HDF5)."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float32, Int64, Shaped

from clipit.distributed import get_processes
from clipit.errors import DataError, counted, repeats, shortlist
from clipit.input_files.folder_files import hidden_names, hidden_note, list_files, reject_unlisted
from clipit.input_files.git_lfs import check_pointer

logger = logging.getLogger(__name__)

_SUFFIXES = (".h5", ".hdf5")
_MAX_COORD = 2**53  # larger whole numbers are not exact as floats
_MAX_COMPRESSION = 2000  # largest plausible ratio; gzip compresses equal bytes by a factor of about 1000
_EXPECTED = "datasets `features` [n, d] or [1, n, d] and `coords` [n, 2], as TRIDENT and CLAM write them"


@dataclass(frozen=True)
class SlideFeatures:
    """Tile features of one slide; the vectors are read from disk on demand.

    Attributes:
        path: HDF5 file.
        slide: Name of the slide: the file name without its suffix.
        coords: Upper left corner of each tile, x and y, as stored: in pixels of the slide's finest level, except in
            files from CLAM's older pipeline, which cannot be recognised (see docs/extending.md).
        attributes: Attributes of `coords`, such as patch_size and patch_level (CLAM) or patch_size_level0 (TRIDENT).
        encoder: Name of the model that computed the features (their attribute `encoder`); "" if it is not stated.
    """

    path: Path
    slide: str
    dim: int
    coords: Int64[np.ndarray, "n 2"]
    attributes: dict[str, Any]
    encoder: str = ""

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.coords)

    @property
    def ids(self) -> list[str]:
        """Ids of the tiles: slide:x_y."""
        return [f"{self.slide}:{x}_{y}" for x, y in self.coords.tolist()]

    @cached_property
    def first_rows(self) -> Int64[np.ndarray, " m"]:
        """Row numbers in the order of the file, without rows at the position of an earlier tile."""
        _, first = np.unique(self.coords, axis=0, return_index=True)
        return np.sort(first).astype(np.int64)

    def vectors(self, start: int = 0, stop: int | None = None) -> Float32[np.ndarray, "_ dim"]:
        """Read the vectors of the tiles from `start` to `stop` (exclusive; all by default).

        Raises:
            DataError: The file is damaged.
        """
        with _hdf5_errors(self.path), h5py.File(self.path, "r") as file:
            features = file["features"]
            rows = features[0, start:stop] if features.ndim == 3 else features[start:stop]
        return np.asarray(rows, dtype=np.float32)


def open_slide_features(path: Path) -> SlideFeatures:
    """Open the features of one slide.

    Raises:
        DataError: The file is missing or damaged, lacks a dataset, or has unexpected shapes or types.
    """
    with _hdf5_errors(path), h5py.File(path, "r") as file:
        arrays = {name: file[name] for name in ("features", "coords") if isinstance(file.get(name), h5py.Dataset)}
        problem = _problem(arrays, list(file))
        if problem:
            raise DataError(problem, where=path, fix=f"use a file with {_EXPECTED}")
        coords = arrays["coords"]
        values = np.asarray(coords[0] if coords.ndim == 3 else coords[:])
        _check_coords(values, path)
        attributes = {str(_as_json(name)): _as_json(value) for name, value in coords.attrs.items()}
        features = arrays["features"]
        encoder = str(_as_json(features.attrs.get("encoder", "")))
        return SlideFeatures(path, path.stem, int(features.shape[-1]), values.astype(np.int64), attributes, encoder)


@contextmanager
def _hdf5_errors(path: Path) -> Iterator[None]:
    """Convert errors from a missing or damaged HDF5 file within the block into a `DataError`."""
    try:
        yield
    except FileNotFoundError:
        raise DataError("no such feature file", where=path, fix=f"use a file with {_EXPECTED}") from None
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        check_pointer(path)
        if any(word in str(error) for word in ("required filter", "plugin")):  # the file may be intact
            raise DataError(
                f"the HDF5 file is compressed with a filter that h5py does not include ({error})",
                where=path,
                fix="save the features with gzip or without compression, for example with h5repack -f GZIP=4",
            ) from error
        raise DataError(f"not a readable HDF5 file: {error}", where=path, fix="copy or compute it again") from error


def _check_coords(values: Shaped[np.ndarray, "n 2"], path: Path) -> None:
    """Check that coordinates are whole numbers, because tile ids contain them.

    Raises:
        DataError: A coordinate is not a whole number.
    """
    whole = np.isfinite(values) & (values == np.round(values)) & (np.abs(values) < _MAX_COORD)
    if not whole.all():
        row = int(np.flatnonzero(~whole.all(axis=1))[0])
        raise DataError(
            f"coords must be whole numbers of pixels; those of tile {row} are {values[row].tolist()}",
            where=path,
            fix="compute the features of this slide again",
        )


def find_feature_files(paths: Sequence[Path]) -> list[Path]:
    """List feature files, including all .h5 and .hdf5 files directly in the given folders.

    Other feature files in the folders, such as those in subfolders, are counted in a note.

    Raises:
        DataError: There are no files, two slides have the same name, a link has no target, or a name is not UTF-8.
    """
    files, unread, hidden = list[Path](), list[Path](), list[str]()
    for path in paths:
        listed = list_files(path, _is_feature_file) if path.is_dir() else None
        unlisted = [*listed.dangling, *listed.undecodable] if listed else []
        reject_unlisted([file for file in unlisted if file.parent == path and _is_feature_file(file)], path)
        hidden += hidden_names(listed, path, lambda file: file.suffix.lower() in _SUFFIXES) if listed else []
        for file in sorted(listed.files) if listed else [path]:
            read = file == path or (file.parent == path and file.suffix.lower() in _SUFFIXES)
            (files if read else unread).append(file)
    where = shortlist([str(path) for path in paths])
    if not files:
        raise DataError("no feature files", where=where, fix="use .h5 files from TRIDENT or CLAM, or their folder")
    if repeated := repeats([file.stem for file in files], files.__getitem__):
        raise DataError(f"slides with the same name: {shortlist(repeated)}", where=where, fix="rename the files")
    if get_processes().main:
        for note in hidden_note(hidden, "feature file"):
            logger.info(f"note: {note}")
    if unread and get_processes().main:
        shown = shortlist(unread, 3)
        logger.info(
            f"note: {counted(len(unread), 'feature file is', 'feature files are')} skipped, because only "
            f"{' and '.join(_SUFFIXES)} files directly in the folder are read: {shown}"
        )
    return files


def _is_feature_file(path: Path) -> bool:
    return path.suffix.lower() in (*_SUFFIXES, ".pt") and not path.name.startswith(".")


def find_copied_slides(slides: Sequence[SlideFeatures]) -> list[list[str]]:
    """List groups of slides whose files contain the same tiles with the same features."""
    by_positions: dict[tuple[int, bytes], list[SlideFeatures]] = {}
    for slide in slides:
        if len(slide):
            by_positions.setdefault((slide.dim, slide.coords.tobytes()), []).append(slide)
    copies = []
    for group in by_positions.values():
        by_content: dict[bytes, list[str]] = {}
        for slide in group if len(group) > 1 else ():
            by_content.setdefault(slide.vectors().tobytes(), []).append(slide.slide)
        copies += [names for names in by_content.values() if len(names) > 1]
    return copies


def describe_copies(copies: Sequence[Sequence[str]]) -> list[str]:
    """Describe slides with the same features (`find_copied_slides`) in at most one line."""
    listed = [" = ".join(names) for names in copies if len(names) > 1]
    groups = counted(len(listed), "group of slides has", "groups of slides have")
    return [f"{groups} the same features: {shortlist(listed)}"] if listed else []


def _problem(arrays: dict[str, Any], names: list[str]) -> str:
    """Describe the problem with the datasets of a file; "" if they are valid."""
    missing = [name for name in ("features", "coords") if name not in arrays]
    if missing:
        return f"no dataset {' or '.join(missing)}; the file contains {shortlist(names) or 'none'}"
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    features, coords = shapes["features"], shapes["coords"]
    batched = (len(features) == 3 and features[0] == 1, len(coords) == 3 and coords[0] == 1)
    rows = [shape[1:] if batch else shape for shape, batch in zip((features, coords), batched, strict=True)]
    if any(len(shape) != 2 for shape in rows) or rows[0][0] != rows[1][0] or rows[1][1] != 2 or not rows[0][1]:
        return f"features have the shape {list(features)}, coords {list(coords)}"
    if arrays["features"].dtype.kind != "f" or arrays["coords"].dtype.kind not in "iuf":
        types = f"{arrays['features'].dtype} and {arrays['coords'].dtype}"
        return f"features must be floats and coords numbers; they are {types}"
    for name, array in arrays.items():
        if array.is_virtual:
            continue
        if array.nbytes > _MAX_COMPRESSION * array.id.get_storage_size() or _lacks_chunks(array):
            return f"{name} of shape {list(array.shape)} are not stored completely: the file is damaged or unfinished"
    return ""


def _lacks_chunks(array: "h5py.Dataset") -> bool:
    """Return whether chunks were never written; HDF5 reads them as zeros."""
    if array.chunks is None:
        return False
    expected = np.prod([-(-length // chunk) for length, chunk in zip(array.shape, array.chunks, strict=True)])
    return bool(array.id.get_num_chunks() < expected)


def _as_json(value: Any) -> Any:
    """Convert an attribute to a value that JSON can represent."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
