"""Read tiles and overviews of slides at an exact resolution."""

import logging
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32
from PIL import Image

from clipit.errors import DataError
from clipit.images.decode import ImageError
from clipit.slides.grid import tile_id
from clipit.slides.opening import open_slide
from clipit.slides.slide_file import Level, SlideFile
from clipit.slides.tiff_pages import TO_PYRAMID

logger = logging.getLogger(__name__)

_LEVEL_TOLERANCE = 1.01
"""A level may be up to 1% coarser than requested, because a downsample of 2.0005 means 2."""
_MAX_OPEN = 16
"""Number of slides that a process keeps open."""
_MAX_PIXELS = 2**33
"""Maximum number of pixels of a level from which an overview is computed; this size takes about 10 minutes."""
_SLOW_PIXELS = 2**29
"""Number of pixels of a level from which computing an overview takes about a minute."""
_BLOCK = 2048  # edge length of the regions read for an overview, in pixels of the level


def choose_level(slide: SlideFile, downsample: float) -> int:
    """Return the coarsest level whose downsample exceeds the given one by at most 1%, or else the finest level."""
    candidates = [
        number for number, level in enumerate(slide.levels) if level.downsample <= downsample * _LEVEL_TOLERANCE
    ]
    return max(candidates, key=lambda number: slide.levels[number].downsample, default=0)


def read_tile(slide: SlideFile, x: int, y: int, extent: float, pixels: int) -> Image.Image:
    """Read a square tile as RGB, resampled to an exact size from the nearest level.

    Args:
        x: Left edge in level-0 pixels.
        y: Upper edge in level-0 pixels.
        extent: Edge length in level-0 pixels; may be fractional.

    Raises:
        ImageError: The pixels are damaged.
    """
    level = choose_level(slide, extent / pixels)
    inner = extent / slide.levels[level].downsample
    edge = max(1, math.ceil(inner - 1e-6))
    region = slide.read_region(x, y, level, edge, edge)
    if edge == pixels and abs(inner - pixels) < 1e-3:
        return region
    return region.resize((pixels, pixels), Image.Resampling.BILINEAR, box=(0, 0, min(inner, edge), min(inner, edge)))


def read_overview(slide: SlideFile, downsample: float) -> Image.Image:
    """Read the whole slide at a downsample, block by block; the label and macro images are never read.

    Args:
        downsample: Level-0 pixels per overview pixel.

    Raises:
        ImageError: The pixels are damaged.
        DataError: The slide has no level that is small enough to be read completely.
    """
    whole = slide.levels[0]
    width, height = max(1, math.ceil(whole.width / downsample)), max(1, math.ceil(whole.height / downsample))
    level = choose_level(slide, downsample)
    _check_size(slide.levels[level], f"{width:,} x {height:,}")
    factor = downsample / slide.levels[level].downsample
    block = max(1, int(_BLOCK / factor))
    overview = Image.new("RGB", (width, height), "white")
    for top in range(0, height, block):
        for left in range(0, width, block):
            columns, rows = min(block, width - left), min(block, height - top)
            inner = columns * factor, rows * factor
            size = math.ceil(inner[0] - 1e-6), math.ceil(inner[1] - 1e-6)
            region = slide.read_region(int(left * downsample), int(top * downsample), level, *size)
            box = (0, 0, min(inner[0], size[0]), min(inner[1], size[1]))
            overview.paste(region.resize((columns, rows), Image.Resampling.BILINEAR, box=box), (left, top))
    return overview


def _check_size(level: Level, overview: str) -> None:
    """Reject a level with too many pixels, such as the only level of a slide; log if reading takes minutes.

    Raises:
        DataError: The level has more than 8.6 billion pixels.
    """
    pixels = level.width * level.height
    size = f"{level.width:,} x {level.height:,}"
    if pixels > _MAX_PIXELS:
        raise DataError(
            f"the slide has no level between {size} pixels and its overview of {overview}, which would take more than "
            "10 minutes to compute, even if most of the slide is empty",
            fix=TO_PYRAMID,
        )
    if pixels > _SLOW_PIXELS:
        logger.info(f"reading {size} pixels for an overview of a slide without smaller levels; this takes minutes")


class SlidePool:
    """The most recently used slides of this process, kept open; pickled copies open the slides again."""

    def __init__(self, max_open: int = _MAX_OPEN) -> None:
        """Create a pool that keeps at most `max_open` slides open."""
        self._max_open = max_open
        self._forget()

    def _forget(self) -> None:
        self._slides: OrderedDict[Path, SlideFile] = OrderedDict()
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def get(self, path: Path) -> SlideFile:
        """Return the open slide.

        Raises:
            DataError: The slide cannot be opened.
        """
        if self._pid != os.getpid():  # a forked process must share neither handles nor a lock that is held
            self._forget()
        with self._lock:
            slide = self._slides.pop(path, None) or open_slide(path)
            self._slides[path] = slide
            # The oldest slides are not closed here, because another thread may be reading from them.
            while len(self._slides) > self._max_open:
                self._slides.popitem(last=False)
            return slide

    def drop(self, path: Path, slide: SlideFile) -> None:
        """Drop a slide that could not be read, unless it has been reopened since."""
        with self._lock:
            if self._slides.get(path) is slide:
                del self._slides[path]

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without open slides."""
        return {"max_open": self._max_open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle without open slides."""
        self.__init__(state["max_open"])  # type: ignore[misc]


@dataclass(frozen=True)
class PlacedSlide:
    """A slide with the geometry of its tiles.

    Attributes:
        extent: Tile edge length in level-0 pixels; may be fractional.
        pixels: Tile edge length in pixels after resampling.
    """

    name: str
    path: Path
    extent: float
    pixels: int


class SlideReader:
    """Reads tiles of slides by row (see `clipit.images.image_readers.Reader`)."""

    def __init__(
        self,
        slides: Sequence[PlacedSlide],
        slide_of: Int32[np.ndarray, " n"],
        x: Int32[np.ndarray, " n"],
        y: Int32[np.ndarray, " n"],
    ) -> None:
        """Store the positions of the tiles; no slide is opened yet.

        Args:
            slide_of: Position of each tile's slide in `slides`.
            x: Left edge of each tile, in level-0 pixels.
            y: Upper edge of each tile, in level-0 pixels.
        """
        self._slides, self._slide_of, self._x, self._y = tuple(slides), slide_of, x, y
        self._pool = SlidePool()

    def read(self, row: int) -> Image.Image:
        """Read a tile as RGB.

        Raises:
            ImageError: The pixels are damaged.
            DataError: The slide cannot be opened.
        """
        placed = self._slides[self._slide_of[row]]
        shared = self._pool.get(placed.path)
        try:
            return self._read(shared, placed, row)
        except ImageError:
            self._pool.drop(placed.path, shared)
        # After an error, openslide rejects every read, so the error may come from another tile and thread.
        reopened = open_slide(placed.path)
        try:
            return self._read(reopened, placed, row)
        finally:
            reopened.close()

    def _read(self, slide: SlideFile, placed: PlacedSlide, row: int) -> Image.Image:
        return read_tile(slide, int(self._x[row]), int(self._y[row]), placed.extent, placed.pixels)

    def where(self, row: int) -> str:
        """Return the path of the slide and the id of the tile, for messages."""
        slide = self._slides[self._slide_of[row]]
        return f"{slide.path}: {tile_id(slide.name, int(self._x[row]), int(self._y[row]), round(slide.extent))}"
