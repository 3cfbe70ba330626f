"""Check that all levels and pages of a slide show the same image as its overview."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from clipit.crash_watch import noted
from clipit.errors import DataError
from clipit.images.decode import ImageError
from clipit.images.tiff_copies import differs, is_alike, is_auxiliary
from clipit.slides.reading import choose_level
from clipit.slides.slide_file import SlideFile
from clipit.slides.tiff_pages import FORMATS, TO_PYRAMID, read_pages

_CELL = 8  # edge length of an area in pixels of the overview
_CELLS = 16  # number of areas with evenly spaced grey values, and number of evenly spaced areas
_MIN_CELLS = 8  # in the overview
_FIRST = 6  # areas that suffice if they match and are not uniform; each requires decoding a few tiles
_EQUAL_GREY, _RANGE_GREY = 8, 32  # maximum difference between matching areas, minimum range of non-uniform areas
_MAX_EDGE = 1024  # edge length of an area in pixels of the level
_MAX_PIXELS = 2**26  # maximum number of pixels of a compared page


def check_tile_level(
    slide: SlideFile, overview: Image.Image, downsample: float, tile_downsample: float, path: Path
) -> None:
    """Compare the mean grey values of some areas of the overview with those of the level that tiles are read from.

    Nothing is compared if both are read from the same level, the slide is too small, the areas are too large on the
    level, or an area cannot be read (which is reported when tiles are read).

    Args:
        overview: Image of the whole slide.
        downsample: Level-0 pixels per overview pixel.
        tile_downsample: Level-0 pixels per tile pixel.

    Raises:
        DataError: The levels show different images.
    """
    level, overview_level = choose_level(slide, tile_downsample), choose_level(slide, downsample)
    if level == overview_level:
        return
    edge = math.ceil(_CELL * downsample / slide.levels[level].downsample)
    columns, rows = overview.width // _CELL, overview.height // _CELL
    if columns * rows < _MIN_CELLS or edge > _MAX_EDGE:
        return
    whole = overview.convert("L").crop((0, 0, columns * _CELL, rows * _CELL))
    means = np.asarray(whole.resize((columns, rows), Image.Resampling.BOX), dtype=np.float64)
    expected, actual = list[float](), list[float]()
    for row, column in _choose_cells(means):
        if len(actual) == _FIRST and _are_equal(actual, expected):
            return
        x, y = int(column * _CELL * downsample), int(row * _CELL * downsample)
        try:
            region = slide.read_region(x, y, level, edge, edge)
        except ImageError:
            return
        expected.append(means[row, column])
        actual.append(float(np.asarray(region.convert("L")).mean()))
    if not is_alike(np.array(actual), np.array(expected)):
        sizes = [f"{each.width} x {each.height}" for each in (slide.levels[level], slide.levels[overview_level])]
        raise DataError(
            f"the level of {sizes[0]} pixels, used for tiles, and the level of {sizes[1]} pixels, used to find tissue, "
            "show different images",
            where=path,
            fix=f"remove the level that does not belong to the slide, or {TO_PYRAMID}",
        )


def check_unread_pages(path: Path, slide: SlideFile, overview: Image.Image) -> None:
    """Check that unread tiled pages with the shape of a level show the same image as the overview.

    Only generic TIFFs, Aperio TIFFs and OME-TIFFs are checked; other scanners store a slide in several images. A page
    is not compared if it is marked as a smaller copy, is named label, macro, overview or thumbnail, is too large, or is
    damaged.

    Raises:
        DataError: A page shows a different image, which would be lost.
    """
    if slide.format not in (*FORMATS, "ome-tiff"):
        return
    levels = {(level.width, level.height) for level in slide.levels}
    for number, page in enumerate(read_pages(path)):
        unread = number > 0 and page.is_tiled and not page.is_reduced and page.size not in levels
        if not unread or is_auxiliary(page.description) or math.prod(page.size) > _MAX_PIXELS:
            continue
        try:
            with noted(str(path)), Image.open(path) as image:
                image.seek(number)
                other = image.size == page.size and differs(image.convert("RGB"), overview)
        except Exception:  # Pillow raises many kinds of exceptions for corrupt data
            continue
        if other:
            raise DataError(
                f"page {number} of the TIFF ({page.size[0]} x {page.size[1]} pixels) has the shape of a smaller level, "
                "but shows a different image, which would not be read",
                where=path,
                fix="save each image in its own file",
            )


def _are_equal(actual: Sequence[float], expected: Sequence[float]) -> bool:
    differences = np.abs(np.subtract(actual, expected))
    return bool(np.ptp(expected) >= _RANGE_GREY and differences.max() <= _EQUAL_GREY)


def _choose_cells(means: Float[np.ndarray, "rows columns"]) -> list[tuple[int, int]]:
    """Choose some cells at evenly spaced grey values and some at evenly spaced positions; a few of each come first."""
    order = np.argsort(means, axis=None, kind="stable")
    values = means.ravel()[order]
    targets = np.linspace(values[0], values[-1], _CELLS)
    positions = np.searchsorted(values, targets).clip(max=len(values) - 1)
    everywhere = np.linspace(0, means.size - 1, _CELLS).astype(np.int64)
    third = (_CELLS - 1) // 3
    chosen = dict.fromkeys(
        [*order[positions[::third]], *everywhere[third:-third:third], *order[positions], *everywhere]
    )
    return [(int(index) // means.shape[1], int(index) % means.shape[1]) for index in chosen]
