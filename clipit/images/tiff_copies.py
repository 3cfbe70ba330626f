"""Classify the smaller pages of a TIFF: copies of the first page, label or macro images, and other images."""

import re

import numpy as np
from jaxtyping import Float
from PIL import Image

_AUXILIARY = re.compile(r"(?<![a-z])(label|macro|overview|thumbnail)(?=image|mask|[^a-z]|$)", re.IGNORECASE)
_MIN_EDGE = 16  # minimum edge of compared images in pixels
_CELL, _MAX_CELLS = 2, 64  # minimum edge length of a cell in pixels, and maximum number of cells per edge
_CORRELATION = 0.4  # minimum correlation of grey values
_UNIFORM, _ALIKE_GREY = 3, 12  # maximum deviation in uniform images, and maximum mean difference between two of them
_ROUNDING = 0.05  # maximum relative difference between the factors of the two edges


def is_auxiliary(name: str) -> bool:
    """Return whether an image's name marks it as a label, macro, overview or thumbnail of a slide."""
    return bool(_AUXILIARY.search(name))


def is_reduced(size: tuple[int, int], first: tuple[int, int]) -> bool:
    """Return whether both edges are shorter than those of another size, by about the same factor."""
    expected = first[1] * size[0] / first[0]
    return size[0] < first[0] and size[1] < first[1] and abs(size[1] - expected) <= max(2, _ROUNDING * expected)


def differs(page: Image.Image, first: Image.Image) -> bool:
    """Return whether an image is clearly not a resized copy of another.

    The mean grey values of up to 64 x 64 cells are compared (see `is_alike`). Copies of histology tiles that were
    downscaled, by any method, to at least 16 pixels per edge almost always match the original. Tiles of different
    tissue do not match, even if they are stained alike. Images with fewer than 16 pixels per edge are not compared.
    """
    if min(page.size) < _MIN_EDGE:
        return False
    edges = (min(page.width, first.width), min(page.height, first.height))
    cells = tuple(min(_MAX_CELLS, max(1, edge // _CELL)) for edge in edges)
    return not is_alike(_cell_means(page, cells), _cell_means(first, cells))


def is_alike(one: Float[np.ndarray, "..."], other: Float[np.ndarray, "..."]) -> bool:
    """Return whether grey values of the same areas of two images are correlated, or uniform and similar."""
    if max(one.std(), other.std()) <= _UNIFORM:
        return bool(np.abs(one - other).mean() <= _ALIKE_GREY)
    one, other = one - one.mean(), other - other.mean()
    scale = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return scale > 0 and float((one * other).sum()) / scale >= _CORRELATION


def _cell_means(image: Image.Image, cells: tuple[int, ...]) -> Float[np.ndarray, "rows columns"]:
    grey = image.convert("RGB").convert("L")
    return np.asarray(grey.resize((cells[0], cells[1]), Image.Resampling.BOX), dtype=np.float64)
