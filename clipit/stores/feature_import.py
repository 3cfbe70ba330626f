"""Import of slide features computed by TRIDENT or CLAM (HDF5) as a tile store."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from clipit.distributed import build_once, get_processes
from clipit.errors import DataError, counted, counted_of, repeats, shortlist
from clipit.output_files.artifacts import file_sha256, write_json
from clipit.output_files.whole_files import write_parquet
from clipit.progress import Advance
from clipit.stores.embed import Store, write_embeddings
from clipit.stores.slide_feature_checks import check_encoders, check_owners, describe_settings
from clipit.stores.slide_features import (
    SlideFeatures,
    describe_copies,
    find_copied_slides,
    find_feature_files,
    open_slide_features,
)

if TYPE_CHECKING:
    from clipit.models.vlm import VLM

logger = logging.getLogger(__name__)

TILES = "tiles.parquet"
"""Table with one row per tile: id, slide, and x and y in pixels at the slide's finest level."""
_CHECKED, _TOLERANCE = 1000, 0.02  # vectors checked per slide before the import; tolerance for half precision


def import_features(root: Path, paths: Sequence[Path], vlm: "VLM") -> Store:
    """Import slide features as a tile store in the joint space of a VLM, to be paired with the VLM's snippet index.

    The files do not record whether the vectors were projected into the joint space, and features before the projection
    may have the same dimension. Unit vectors are therefore required. TRIDENT's CONCH encoder, for example, neither
    projects nor normalises unless it is built with `with_proj=True, normalize=True`.

    Args:
        paths: HDF5 files, or folders of them.
        vlm: VLM whose image tower computed the features, projected into the joint space.

    Raises:
        DataError: A file cannot be read, its vectors do not have the dimension of the VLM or are not unit vectors,
            files name different encoders, a file is named after one slide but records another's name, a tile occurs
            twice, or there are no tiles.
    """
    slides = [open_slide_features(path) for path in find_feature_files(paths)]
    mismatched = [f"{slide.path.name} ({slide.dim})" for slide in slides if slide.dim != vlm.joint_dim]
    if mismatched:
        raise DataError(
            f"features do not have the {vlm.joint_dim} dimensions of {vlm.name}: {shortlist(mismatched)}",
            where=slides[0].path.parent,
            fix="compute them with the image tower of `vlm`, projected into the joint space",
        )
    check_owners(slides, slides[0].path.parent)
    check_encoders(slides, slides[0].path.parent)
    for slide in slides:
        _check_unit_vectors(slide, slide.vectors(0, _CHECKED), 0)
    ids = [tile for slide in slides for tile in slide.ids]
    file_of = [slide.path for slide in slides for _ in range(len(slide))]
    repeated = repeats(ids, file_of.__getitem__)
    if repeated or not ids:
        problem = f"tiles that occur twice: {shortlist(repeated)}" if repeated else "the files contain no tiles"
        raise DataError(problem, where=slides[0].path.parent, fix="compute the features of these slides again")
    if get_processes().main:
        _log_notes(slides, vlm)
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


def _log_notes(slides: Sequence[SlideFeatures], vlm: "VLM") -> None:
    """Log the encoder that the files name, slides without tiles, copies of slides and differing tile settings."""
    stated = sorted({slide.encoder for slide in slides} - {""})
    if stated:
        logger.info(f"note: the feature files name the encoder {shortlist(stated)}; the configured VLM is {vlm.name}")
    empty = [slide.slide for slide in slides if not len(slide)]
    if empty:
        logger.info(
            f"note: {counted_of(len(empty), len(slides), 'slide has', 'slides have')} no tiles: {shortlist(empty)}"
        )
    for note in describe_copies(find_copied_slides(slides)):
        logger.info(f"note: {note}")
    for warning in describe_settings(slides):
        logger.warning(warning.removeprefix("WARNING: "))


def _check_unit_vectors(slide: SlideFeatures, vectors: Float32[np.ndarray, "_ dim"], start: int) -> None:
    """Check the values and norms of the vectors from row `start`."""
    norms = np.linalg.norm(vectors, axis=1)
    undefined, zero = ~np.isfinite(norms), norms == 0
    wrong = undefined | (np.abs(norms - 1) > _TOLERANCE)
    if not wrong.any():
        return
    fix = "compute the features of this slide again"
    if undefined.any() or zero.any():
        wrong, kind = (undefined, "not finite") if undefined.any() else (zero, "all zeros")
        problem = f"{counted(int(wrong.sum()), 'feature vector is', 'feature vectors are')} {kind}"
    elif wrong.mean() > 0.5:
        problem = (
            f"the vectors have a median norm of {np.median(norms[wrong]):.3g} instead of 1: features before the "
            "projection into the joint space cannot be compared with texts"
        )
        fix = "compute projected and normalised features (TRIDENT's conch_v1: with_proj=True, normalize=True)"
    else:
        problem = f"{counted(int(wrong.sum()), 'vector has', 'vectors have')} a norm other than 1"
    ids = slide.ids
    listed = shortlist([ids[start + row] for row in np.flatnonzero(wrong).tolist()], 3)
    raise DataError(f"{problem}: {listed}", where=slide.path, fix=fix)
