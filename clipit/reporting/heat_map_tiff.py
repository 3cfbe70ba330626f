"""Heat maps as pyramidal OME-TIFF, which viewers such as QuPath align with the slide by pixel size."""

import uuid
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from clipit.errors import DataError
from clipit.output_files.artifacts import whole_file
from clipit.slides.grid import SlideGrid
from clipit.slides.heat_map import halved, heat_map

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "clipit-pathology")
_MAX_BYTES = 2**31  # a larger map is written as BigTIFF, because classic TIFF uses 32-bit offsets
_TILE = 256  # edge length of a TIFF tile, in pixels; the smallest level fits into one tile


def write_heat_map_tiff(
    path: Path,
    grid: SlideGrid,
    classes: Sequence[str],
    scores: Float[np.ndarray, "n classes"],
) -> None:
    """Write the heat maps of a slide as an OME-TIFF with one float32 channel per class and smaller levels as sub-IFDs.

    A map has one pixel per grid cell. Values are mean scores of the tiles at each pixel; NaN marks pixels without
    tiles. The map shares the slide's origin, and its pixel size is recorded in micrometres, so that viewers can lay it
    over the slide. Each pixel of a smaller level is the mean of up to four pixels.

    Args:
        path: Output file (.ome.tif).
        classes: Class names, used as channel names.
        scores: Scores, one row per tile of the grid.

    Raises:
        DataError: tifffile is not installed.
        ArtifactError: The file cannot be written, for example because the disk is full.
    """
    try:
        import tifffile
    except ImportError as error:
        raise DataError(
            f"cannot write {path.name} without tifffile ({error})",
            fix="pip install tifffile",
        ) from error
    levels = [heat_map(grid, scores, grid.step)]
    while max(levels[-1].shape[1:]) > _TILE:
        levels.append(halved(levels[-1]))
    size = grid.step * grid.mpp
    metadata: dict[str, Any] = {
        "axes": "CYX",
        # derived from the content, so that writing the same map again gives the same file
        "UUID": str(uuid.uuid5(_NAMESPACE, f"{grid.slide}\n{sha256(levels[0].tobytes()).hexdigest()}")),
        "Name": grid.slide,
        "PhysicalSizeX": size,
        "PhysicalSizeXUnit": "\u00b5m",
        "PhysicalSizeY": size,
        "PhysicalSizeYUnit": "\u00b5m",
        "Channel": {"Name": list(classes)},
    }
    options: dict[str, Any] = {"photometric": "minisblack", "tile": (_TILE, _TILE), "compression": "zlib"}
    big = levels[0].nbytes > _MAX_BYTES
    with whole_file(path) as temporary, tifffile.TiffWriter(temporary, ome=True, bigtiff=big) as writer:
        for i, level in enumerate(levels):
            per_cm = 1e4 / (size * 2**i)
            first = (
                {"subifds": len(levels) - 1, "metadata": metadata} if i == 0 else {"subfiletype": 1, "metadata": None}
            )
            writer.write(level, resolution=(per_cm, per_cm), resolutionunit="CENTIMETER", **options, **first)
