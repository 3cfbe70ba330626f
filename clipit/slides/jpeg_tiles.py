"""Decode JPEG-compressed tiles in TIFF slides, which is faster than reading them through openslide.

As for image files (`clipit.images.jpeg`), simplejpeg is used where it is installed: it is faster than Pillow, and
reports corrupt data for which Pillow and openslide return wrong pixels.
"""

import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from PIL import Image

from clipit.errors import is_out_of_memory
from clipit.images.decode import ImageError
from clipit.images.jpeg import decode_bytes, find_corruption, is_compared
from clipit.slides.slide_file import Level
from clipit.slides.tiff_pages import TiffBytes, open_levels

_JPEG, _RGB, _YCBCR = 7, 2, 6  # values of the TIFF tags Compression and PhotometricInterpretation
CACHE_BYTES = 256 * 2**20
"""Size of a cache of decoded tiles: enough for two rows of 256-pixel tiles of a slide 130,000 pixels wide."""
_BYTES_PER_PIXEL = 4  # Pillow stores RGB as RGBA
_FRAMES = (0xC0, 0xC1, 0xC2)  # markers of baseline, extended and progressive frames
_STRIPES = 64  # number of locks; tiles that do not share a lock are decoded in parallel
_level_ids = itertools.count()


class TileCache:
    """The most recently used decoded tiles of all slides of a process, up to a maximum number of bytes."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        """Create an empty cache of at most `max_bytes` bytes."""
        self._max_bytes = max_bytes
        self.clear()

    def clear(self) -> None:
        """Drop all tiles and create new locks, because a forked process may have copied locked ones."""
        self._tiles: OrderedDict[tuple[int, int], Image.Image] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._decoding = [threading.Lock() for _ in range(_STRIPES)]

    def get(self, key: tuple[int, int], decode: Callable[[], Image.Image]) -> Image.Image:
        """Return a tile, decoded at most once even if several threads ask for it at the same time."""
        tile = self._find(key)
        if tile is not None:
            return tile
        with self._decoding[hash(key) % _STRIPES]:
            tile = self._find(key)
            if tile is None:
                tile = decode()
                self._add(key, tile)
            return tile

    def _find(self, key: tuple[int, int]) -> Image.Image | None:
        with self._lock:
            if key not in self._tiles:
                return None
            self._tiles.move_to_end(key)
            return self._tiles[key]

    def _add(self, key: tuple[int, int], tile: Image.Image) -> None:
        with self._lock:
            self._tiles[key] = tile
            self._bytes += _size(tile)
            while self._bytes > self._max_bytes:
                self._bytes -= _size(self._tiles.popitem(last=False)[1])


def _size(tile: Image.Image) -> int:
    return tile.width * tile.height * _BYTES_PER_PIXEL


_cache = TileCache()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_cache.clear)


class JpegLevel:
    """One level of a slide with JPEG-compressed tiles."""

    def __init__(self, file: TiffBytes, page: Any) -> None:
        """Store the positions of the tiles in the file; nothing is decoded yet."""
        self._file = file
        self._id = next(_level_ids)
        self.width, self.height = int(page.imagewidth), int(page.imagelength)
        self.tile_width, self.tile_height = int(page.tilewidth), int(page.tilelength)
        self._columns = -(-self.width // self.tile_width)
        self._offsets: Int64[np.ndarray, " n"] = np.asarray(page.dataoffsets, dtype=np.int64)
        self._counts: Int64[np.ndarray, " n"] = np.asarray(page.databytecounts, dtype=np.int64)
        self._header = _header(page)

    def read(self, left: int, top: int, width: int, height: int) -> Image.Image:
        """Read a rectangle of this level's pixels as RGB; pixels outside the level are white.

        Raises:
            ImageError: A tile is damaged.
        """
        inside = left >= 0 and top >= 0 and left + width <= self.width and top + height <= self.height
        region = Image.new("RGB", (width, height), None if inside else "white")  # None: uninitialised
        right, bottom = min(left + width, self.width), min(top + height, self.height)
        for row in range(max(0, top) // self.tile_height, -(-bottom // self.tile_height)):
            for column in range(max(0, left) // self.tile_width, -(-right // self.tile_width)):
                tile = self._tile(row * self._columns + column)
                region.paste(tile, (column * self.tile_width - left, row * self.tile_height - top))
        return region

    def _tile(self, index: int) -> Image.Image:
        return _cache.get((self._id, index), lambda: self._decode(index))

    def _decode(self, index: int) -> Image.Image:
        """Decode a tile, cropped to the part inside the level."""
        data = self._file.read(int(self._offsets[index]), int(self._counts[index]))
        expected = (self.tile_width, self.tile_height)
        size, samplings = _frame(data)
        if size != expected:  # Pillow's decoder trusts the size that it is given
            dimensions = " x ".join(map(str, expected))
            raise ImageError(f"tile {index} of the slide is damaged: not a JPEG of {dimensions} pixels")
        data = self._header + data[2:]
        fast = is_compared(*expected, samplings)
        image = decode_bytes(data, *expected) if fast else find_corruption(data, len(samplings), *expected)
        if not isinstance(image, Image.Image):
            image = self._decode_with_pillow(data, image, index)
        row, column = divmod(index, self._columns)
        inside = (
            min(self.tile_width, self.width - column * self.tile_width),
            min(self.tile_height, self.height - row * self.tile_height),
        )
        return image if inside == expected else image.crop((0, 0, *inside))

    def _decode_with_pillow(self, data: bytes, corruption: str, index: int) -> Image.Image:
        """Decode a whole tile with Pillow, unless it is known to be corrupt."""
        if corruption:
            raise ImageError(f"tile {index} of the slide is damaged, so some of its pixels are wrong: {corruption}")
        try:
            # `Image.open` would spend much of its time on detecting the format and size, which are known.
            return Image.frombytes("RGB", (self.tile_width, self.tile_height), data, "jpeg", "RGB", "")
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise many kinds of exceptions for corrupt data
            if is_out_of_memory(error):
                raise MemoryError(str(error)) from error
            raise ImageError(f"tile {index} of the slide is damaged: {error}") from error


def open_jpeg_levels(path: Path, levels: Sequence[Level]) -> dict[int, JpegLevel]:
    """Find the levels of a slide with complete JPEG tiles; the other levels must be read with openslide.

    Args:
        path: TIFF in one of `tiff_pages.FORMATS`.
        levels: Levels that openslide finds.
    """
    return open_levels(path, levels, _is_plain, JpegLevel)


def _is_plain(page: Any) -> bool:
    """Return whether all tiles of a page are complete JPEG images with three 8-bit channels."""
    return (
        int(page.compression) == _JPEG
        and int(page.photometric) in (_RGB, _YCBCR)
        and page.samplesperpixel == 3
        and page.bitspersample == 8
        and min(page.databytecounts) > 4
    )


def _frame(data: bytes) -> tuple[tuple[int, int] | None, list[tuple[int, int]]]:
    """Read the frame header of a JPEG: width and height (None unless it has three 8-bit channels), and the
    sampling factors of its channels.
    """
    offset = 2
    while offset + 10 <= len(data) and data[offset] == 0xFF:
        marker = data[offset + 1]
        if marker in _FRAMES:
            height, width = int.from_bytes(data[offset + 5 : offset + 7]), int.from_bytes(data[offset + 7 : offset + 9])
            if (data[offset + 4], data[offset + 9]) != (8, 3):
                return None, []
            return (width, height), [(factors >> 4, factors & 15) for factors in data[offset + 11 : offset + 20 : 3]]
        # A marker may be preceded by any number of fill bytes.
        offset += 1 if marker == 0xFF else 2 + int.from_bytes(data[offset + 2 : offset + 4])
    return None, []


def _header(page: Any) -> bytes:
    """Return the bytes that precede the data of each tile: start of image, colour transform, shared tables."""
    transform = int(int(page.photometric) == _YCBCR)
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    tables = page.jpegtables or b""
    return b"\xff\xd8" + adobe + tables[2:-2]
