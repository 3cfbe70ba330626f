"""Classify the smaller pages of a TIFF: copies of the first page, label or macro images, and other images."""

import re

import numpy as np
from jaxtyping import Float
from PIL import Image

_AUXILIARY = re.compile(r"(?<![a-z])(label|macro|overview|thumbnail)(?=image|mask|[^a-z]|$)", re.IGNORECASE)
_MAX_CELLS, _MIN_CELLS = 8, 4  # number of cells per edge; images with fewer are not compared
_MIN_CELL = 4  # minimum edge of a cell in pixels
_ALIKE_GREY = 12  # maximum mean difference of the cells' grey values (0 to 255)
_ALIKE_CORRELATION = 0.6  # minimum correlation of the cells' grey values


def is_auxiliary(name: str) -> bool:
    """Return whether an image's name marks it as a label, macro, overview or thumbnail of a slide."""
    return bool(_AUXILIARY.search(name))


def differs(page: Image.Image, first: Image.Image) -> bool:
    """Return whether a smaller image is clearly not a copy of another.

    The mean grey values of up to 8 x 8 cells are compared. The images are alike if these values differ by at most 12 of
    255 grey levels on average, or if their correlation is at least 0.6. Copies of histology tiles that were reduced to
    16 pixels or more by any method are alike; two tiles of different tissue seldom are. Images with fewer than 16
    pixels per edge are not compared.
    """
    cells = min(_MAX_CELLS, min(page.size) // _MIN_CELL)
    if cells < _MIN_CELLS:
        return False
    return not is_alike(_cell_means(page, cells), _cell_means(first, cells))


def is_alike(one: Float[np.ndarray, "..."], other: Float[np.ndarray, "..."]) -> bool:
    """Return whether grey values of the same areas of two images differ little, or are correlated."""
    if np.abs(one - other).mean() <= _ALIKE_GREY:
        return True
    one, other = one - one.mean(), other - other.mean()
    scale = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return scale > 0 and float((one * other).sum()) / scale >= _ALIKE_CORRELATION


def _cell_means(image: Image.Image, cells: int) -> Float[np.ndarray, "cells cells"]:
    grey = image.convert("RGB").convert("L")
    return np.asarray(grey.resize((cells, cells), Image.Resampling.BOX), dtype=np.float64)
