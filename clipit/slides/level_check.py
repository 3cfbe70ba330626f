"""Check that the level from which tiles are read shows the same image as the overview, which may be another level."""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from clipit.errors import DataError
from clipit.images.decode import ImageError
from clipit.images.tiff_copies import is_alike
from clipit.slides.reading import choose_level
from clipit.slides.slide_file import SlideFile
from clipit.slides.tiff_pages import TO_PYRAMID

_CELL = 8  # edge in pixels of the overview
_CELLS = 16  # areas of evenly spaced grey values, and evenly spaced areas
_LEAST = 8
_MAX_EDGE = 1024  # pixels of the level per edge of an area


def check_tile_level(slide: SlideFile, overview: Image.Image, downsample: float, wanted: float, path: Path) -> None:
    """Compare the mean grey values of some areas of the overview with those of the level from which tiles are read.

    Nothing is compared if both are read from the same
    level, in slides that are too small, or if an area cannot be read, which is reported when tiles are read.

    Args:
        overview: The whole slide.
        downsample: Pixels of level 0 per pixel of the overview.
        wanted: Pixels of level 0 per pixel of a tile.

    Raises:
        DataError: The levels show different images.
    """
    level, seen = choose_level(slide, wanted), choose_level(slide, downsample)
    if level == seen:
        return
    edge = math.ceil(_CELL * downsample / slide.levels[level].downsample)
    columns, rows = overview.width // _CELL, overview.height // _CELL
    if columns * rows < _LEAST or edge > _MAX_EDGE:
        return
    whole = overview.convert("L").crop((0, 0, columns * _CELL, rows * _CELL))
    means = np.asarray(whole.resize((columns, rows), Image.Resampling.BOX), dtype=np.float64)
    expected, actual = [], []
    for row, column in _choose_cells(means):
        x, y = int(column * _CELL * downsample), int(row * _CELL * downsample)
        try:
            region = slide.read_region(x, y, level, edge, edge)
        except ImageError:
            return
        expected.append(means[row, column])
        actual.append(float(np.asarray(region.convert("L")).mean()))
    if not is_alike(np.array(actual), np.array(expected)):
        sizes = [f"{each.width} x {each.height}" for each in (slide.levels[level], slide.levels[seen])]
        raise DataError(
            f"the level of {sizes[0]} pixels, from which tiles are read, and that of {sizes[1]} pixels, on which tissue "
            "is found, show different images",
            where=path,
            fix=f"remove the level that does not belong to the slide, or {TO_PYRAMID}",
        )


def _choose_cells(means: Float[np.ndarray, "rows columns"]) -> list[tuple[int, int]]:
    """Choose cells whose mean grey values are evenly spaced, and as many evenly spaced cells."""
    order = np.argsort(means, axis=None, kind="stable")
    values = means.ravel()[order]
    targets = np.linspace(values[0], values[-1], _CELLS)
    positions = np.searchsorted(values, targets).clip(max=len(values) - 1)
    everywhere = np.linspace(0, means.size - 1, _CELLS).astype(np.int64)
    chosen = np.union1d(order[positions], everywhere)
    return [(int(index) // means.shape[1], int(index) % means.shape[1]) for index in chosen.tolist()]
