"""Read batches of tile pixels in threads, ahead of the model."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, UInt8
from PIL.Image import Image

from clipit.errors import ClipitError, DataError, is_limit
from clipit.images.device_copies import copy_ahead, stack
from clipit.images.read_ahead import ReadingClock, read_ahead, reading_threads
from clipit.tiles.tileset import TileSet

if TYPE_CHECKING:
    import torch

Geometry = Callable[[Image], UInt8[np.ndarray, "3 h w"]]
"""Function that resizes and crops one image to a model's input."""

MEMORY_LIMIT = 2 * 1024**3
"""Maximum size of the in-memory cache with `cache: auto`, in bytes."""


class PixelSource:
    """Reader of resized tiles by row, with an optional cache in memory or on disk.

    Resizing and cropping do not depend on the step and are done here. Augmentation and normalisation are done for whole
    batches on the model's device.
    """

    def __init__(self, tiles: TileSet, geometry: Geometry, cache: str = "none", threads: int = 0) -> None:
        """Set up the threads, without reading any tile.

        Args:
            tiles: Tiles, indexed by row from 0.
            geometry: Function that maps an image to uint8 pixels [3, h, w], of the same size for every tile.
            cache: `memory`, `auto` (memory if all tiles take less than 2 GiB), or `none`. `disk` has no effect until
                `use_resized` is called.
            threads: Number of reader threads; 0 for one per available core, at most 8.
        """
        self.tiles = tiles
        self._geometry = geometry
        self._mode = cache
        self._cache: dict[int, UInt8[np.ndarray, "3 h w"]] = {}
        self._resized: UInt8[np.ndarray, "n 3 h w"] | None = None
        self._pool = reading_threads(threads)

    def use_resized(self, pixels: UInt8[np.ndarray, "n 3 h w"]) -> None:
        """From now on, read tiles from an array of resized tiles, such as a memory-mapped file.

        Args:
            pixels: Resized tiles, one row per tile.
        """
        self._resized = pixels
        self._cache.clear()

    @property
    def cached(self) -> bool:
        """Whether tiles are read from the array of `use_resized`, in which case no image is decoded."""
        return self._resized is not None

    def cache_bytes(self, size: int, reads: int | None = None) -> tuple[int, int]:
        """Return the bytes that the in-memory cache will hold, and how many of them it already holds.

        The first number does not depend on the tiles that earlier runs have read.

        Args:
            size: Edge length of the resized tiles in pixels.
            reads: Number of tiles that will be read; None for all of them.
        """
        count, tile_bytes = len(self.tiles), 3 * size * size
        small = self._mode == "auto" and tile_bytes * count < MEMORY_LIMIT
        if self._resized is not None or not (small or self._mode == "memory"):
            return 0, 0
        read = count if reads is None else min(reads, count)
        return tile_bytes * read, tile_bytes * max(0, read - (count - len(self._cache)))

    def _pixels(self, row: int) -> UInt8[np.ndarray, "3 h w"]:
        if self._resized is not None:
            return np.array(self._resized[row])  # copied, so that the disk is read in this thread
        cached = self._cache.get(row)
        if cached is not None:
            return cached
        pixels = self._read(row)
        if self._mode == "auto":
            self._mode = "memory" if pixels.nbytes * len(self.tiles.ids) < MEMORY_LIMIT else "none"
        if self._mode == "memory":
            self._cache[row] = pixels
        return pixels

    def _read(self, row: int) -> UInt8[np.ndarray, "3 h w"]:
        try:
            return self._geometry(self.tiles.read(row))
        except ClipitError:
            raise
        except Exception as error:
            if is_limit(error):
                raise
            raise DataError(
                f"tile {self.tiles.ids[row]} cannot be read or resized: {type(error).__name__}: {error}",
                where=self.tiles.reader.where(int(self.tiles.rows[row])),
                fix="replace the file, or remove the tile",
            ) from error

    def batch(self, rows: Int[np.ndarray, "b"]) -> UInt8[np.ndarray, "b 3 h w"]:
        """Read the pixels of a batch of rows."""
        return np.stack([self._pixels(int(row)) for row in rows])

    def ahead(
        self, batches: Iterable[Int[np.ndarray, "_"]], clock: ReadingClock | None = None
    ) -> Iterator[tuple[Int[np.ndarray, "b"], UInt8[np.ndarray, "b 3 h w"]]]:
        """Yield each batch of rows with its pixels, reading ahead."""
        for rows, pixels in read_ahead(batches, lambda row: self._pixels(int(row)), self._pool, clock=clock):
            yield rows, np.stack(pixels)

    def on_device(
        self, batches: Iterable[Int[np.ndarray, "_"]], device: "torch.device", clock: ReadingClock | None = None
    ) -> "Iterator[tuple[Int[np.ndarray, 'b'], torch.Tensor]]":
        """Yield each batch of rows with its uint8 pixels [b, 3, h, w] on a device, reading and copying ahead.

        Args:
            batches: Rows of each batch.
            device: Device of the returned pixels.
            clock: Clock to advance by the time spent waiting for tiles.
        """
        read = read_ahead(batches, lambda row: self._pixels(int(row)), self._pool, clock=clock)
        return copy_ahead(((rows, stack(pixels, device)) for rows, pixels in read), device)
