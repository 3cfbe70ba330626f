"""Slide features computed by TRIDENT or CLAM (HDF5), and their import as a tile store."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64, Shaped

from clipit.distributed import build_once, get_processes
from clipit.errors import DataError, counted, counted_of, repeats, shortlist
from clipit.input_files.data_files import list_files
from clipit.input_files.git_lfs import check_pointer
from clipit.output_files.artifacts import file_sha256, write_json
from clipit.output_files.whole_files import write_parquet
from clipit.progress import Advance
from clipit.stores.embed import Store, write_embeddings

if TYPE_CHECKING:
    from clipit.models.vlm import VLM

logger = logging.getLogger(__name__)

TILES = "tiles.parquet"
"""Table of the store: id, slide, x and y (pixels of the slide's finest level) of each tile."""
_SUFFIXES = (".h5", ".hdf5")
_MAX_COORD = 2**53  # larger whole numbers are not exact as floats
_CHECKED, _TOLERANCE = 1000, 0.02  # vectors checked per slide before the import; tolerance for half precision
_MAX_COMPRESSION = 2000  # largest plausible factor; gzip compresses equal bytes by a factor of about 1000
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
        DataError: There are no files, or two slides have the same name.
    """
    files, unread = list[Path](), list[Path]()
    for path in paths:
        for file in sorted(list_files(path, _is_feature_file).files) if path.is_dir() else [path]:
            read = file == path or (file.parent == path and file.suffix.lower() in _SUFFIXES)
            (files if read else unread).append(file)
    where = shortlist([str(path) for path in paths])
    if not files:
        raise DataError("no feature files", where=where, fix="use .h5 files from TRIDENT or CLAM, or their folder")
    if repeated := repeats([file.stem for file in files], files.__getitem__):
        raise DataError(f"slides with the same name: {shortlist(repeated)}", where=where, fix="rename the files")
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


def import_features(root: Path, paths: Sequence[Path], vlm: "VLM") -> Store:
    """Import slide features as a tile store in the joint space of a VLM, to be paired with the VLM's snippet index.

    The files do not record whether the vectors were projected into the joint space, and features before the projection
    may have the same dimension. Unit vectors are therefore required. TRIDENT's CONCH encoder, for example, neither
    projects nor normalises unless it is built with `with_proj=True, normalize=True`.

    Args:
        paths: HDF5 files, or folders of them.
        vlm: VLM whose image tower computed the features, projected into the joint space.

    Raises:
        DataError: A file cannot be read, its vectors do not have the dimension of the VLM or are not unit vectors, a
            tile occurs twice, or there are no tiles.
    """
    slides = [open_slide_features(path) for path in find_feature_files(paths)]
    mismatched = [f"{slide.path.name} ({slide.dim})" for slide in slides if slide.dim != vlm.joint_dim]
    if mismatched:
        raise DataError(
            f"features do not have the {vlm.joint_dim} dimensions of {vlm.name}: {shortlist(mismatched)}",
            where=slides[0].path.parent,
            fix="compute them with the image tower of `vlm`, projected into the joint space",
        )
    for slide in slides:
        _check_unit_vectors(slide, slide.vectors(0, _CHECKED), 0)
    ids = [tile for slide in slides for tile in slide.ids]
    file_of = [slide.path for slide in slides for _ in range(len(slide))]
    repeated = repeats(ids, file_of.__getitem__)
    if repeated or not ids:
        problem = f"tiles that occur twice: {shortlist(repeated)}" if repeated else "the files contain no tiles"
        raise DataError(problem, where=slides[0].path.parent, fix="compute the features of these slides again")
    empty = [slide.slide for slide in slides if not len(slide)]
    if empty and get_processes().main:
        logger.info(
            f"note: {counted_of(len(empty), len(slides), 'slide has', 'slides have')} no tiles: {shortlist(empty)}"
        )
    for note in describe_copies(find_copied_slides(slides)) if get_processes().main else ():
        logger.info(f"note: {note}")
    content = [[slide.slide, file_sha256(slide.path)] for slide in slides]
    inputs = {"slide_features": content, "vlm": vlm.fingerprint, "space": "joint"}
    offsets = np.cumsum([0, *map(len, slides)])[:-1].tolist()

    def encode(start: int, stop: int, advance: Advance) -> Float32[np.ndarray, "_ dim"]:
        blocks = []
        for slide, offset in zip(slides, offsets, strict=True):
            low, high = max(start - offset, 0), min(stop - offset, len(slide))
            if low < high:
                blocks.append(slide.vectors(low, high))
                _check_unit_vectors(slide, blocks[-1], low)
                advance(high - low)
        return np.concatenate(blocks)

    def make(folder: Path) -> dict[str, Any]:
        facts = write_embeddings(folder, ids, vlm, "joint", encode, "importing features")
        if get_processes().main:
            coords = np.concatenate([slide.coords for slide in slides])
            names = [slide.slide for slide in slides for _ in range(len(slide))]
            table = pa.table({"id": ids, "slide": names, "x": coords[:, 0], "y": coords[:, 1]})
            write_parquet(folder / TILES, table)
            write_json(folder / "slides.json", {slide.slide: slide.attributes for slide in slides})
        return facts | {"slides": len(slides)}

    return Store(build_once(root, "tile_store", inputs, make))


def _check_unit_vectors(slide: SlideFeatures, vectors: Float32[np.ndarray, "_ dim"], start: int) -> None:
    """Check the norms of the vectors from row `start`; non-finite values are reported when the store is written."""
    norms = np.linalg.norm(vectors, axis=1)
    wrong = np.isfinite(norms) & (np.abs(norms - 1) > _TOLERANCE)
    if not wrong.any():
        return
    zero, recompute = norms == 0, "compute the features of this slide again"
    if zero.any():
        problem, fix = f"{counted(int(zero.sum()), 'feature vector is', 'feature vectors are')} all zeros", recompute
    elif wrong.mean() > 0.5:
        problem = (
            f"the vectors have a median norm of {np.median(norms[wrong]):.3g} instead of 1: features before the "
            "projection into the joint space cannot be compared with texts"
        )
        fix = "compute projected and normalised features (TRIDENT's conch_v1: with_proj=True, normalize=True)"
    else:
        problem = f"{counted(int(wrong.sum()), 'vector has', 'vectors have')} a norm other than 1"
        fix = recompute
    ids = slide.ids
    listed = shortlist([ids[start + row] for row in np.flatnonzero(zero if zero.any() else wrong).tolist()], 3)
    raise DataError(f"{problem}: {listed}", where=slide.path, fix=fix)


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
