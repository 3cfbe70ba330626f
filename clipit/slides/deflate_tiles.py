"""Verify the checksums of Deflate-compressed tiles in TIFF slides, because openslide does not.

Each tile is verified when a region that contains it is first read. Verification takes about a quarter of the decoding
time.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipit.images.decode import ImageError
from clipit.images.deflate import COMPRESSIONS, find_deflate_damage
from clipit.slides.slide_file import Level
from clipit.slides.tiff_pages import TiffBytes, open_levels

_TOLERANCE = 1e-6  # pixels


class DeflateLevel:
    """One level of a slide with Deflate-compressed tiles."""

    def __init__(self, file: TiffBytes, page: Any) -> None:
        """Store the positions of the tiles in the file; nothing is read yet.

        Args:
            file: Open slide.
            page: tifffile page.
        """
        self._file = file
        self._tile = (int(page.tilewidth), int(page.tilelength))
        self._columns = -(-int(page.imagewidth) // self._tile[0])
        self._rows = -(-int(page.imagelength) // self._tile[1])
        self._offsets, self._counts = tuple(page.dataoffsets), tuple(page.databytecounts)
        self._intact: set[int] = set()

    def check(self, left: float, top: float, width: int, height: int) -> None:
        """Check the tiles of a rectangle, in pixels of this level.

        Raises:
            ImageError: A tile is damaged.
        """
        columns = _overlapping(left, width, self._tile[0], self._columns)
        for row in _overlapping(top, height, self._tile[1], self._rows):
            for index in (row * self._columns + column for column in columns):
                if index not in self._intact:
                    self._check_tile(index)

    def _check_tile(self, index: int) -> None:
        offset, count = self._offsets[index], self._counts[index]
        damage = find_deflate_damage(self._file.read(offset, count)) if count else ""  # a tile without data is empty
        if damage:
            raise ImageError(f"tile {index} of the slide is damaged: {damage}")
        self._intact.add(index)


def _overlapping(start: float, length: int, edge: int, count: int) -> range:
    """Return the rows or columns of tiles that overlap an interval of pixels."""
    first = max(0, math.floor(start + _TOLERANCE) // edge)
    return range(first, min(count, -(-math.ceil(start + length - _TOLERANCE) // edge)))


def open_deflate_levels(path: Path, levels: Sequence[Level]) -> dict[int, DeflateLevel]:
    """Find the levels of a slide with Deflate-compressed tiles.

    Args:
        path: TIFF in one of `tiff_pages.FORMATS`.
        levels: Levels that openslide finds.
    """
    return open_levels(path, levels, _is_deflate, DeflateLevel)


def _is_deflate(page: Any) -> bool:
    return int(page.compression) in COMPRESSIONS and int(page.fillorder) == 1
