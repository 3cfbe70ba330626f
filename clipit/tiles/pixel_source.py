"""Batches of tile pixels, prefetched by threads while the model computes."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Int, UInt8
from PIL.Image import Image

from clipit.read_ahead import read_ahead, reading_threads
from clipit.tiles.tileset import TileSet

Geometry = Callable[[Image], UInt8[np.ndarray, "3 h w"]]
"""Resizes and crops one image to a model's input."""

_CACHE_LIMIT = 2 * 1024**3  # bytes; largest cache of `cache: auto`


class PixelSource:
    """Reads resized tiles by row, with an optional cache in memory.

    Resizing and cropping are the same in every epoch and are done here; augmentation and normalisation, which differ
    by step, work on the whole batch on the model's device.
    """

    def __init__(self, tiles: TileSet, geometry: Geometry, cache: str = "none", threads: int = 0) -> None:
        """Set up the threads; nothing is read yet.

        Args:
            tiles: Tiles, indexed by row from 0.
            geometry: Function from an image to uint8 pixels [3, h, w], of the same size for every tile.
            cache: `memory`, `none`, or `auto` (memory if all tiles take less than 2 GiB).
            threads: Number of reading threads; 0: one per core, at most 8.
        """
        self.tiles = tiles
        self._geometry = geometry
        self._mode = cache
        self._cache: dict[int, UInt8[np.ndarray, "3 h w"]] = {}
        self._pool = reading_threads(threads)

    def _pixels(self, row: int) -> UInt8[np.ndarray, "3 h w"]:
        cached = self._cache.get(row)
        if cached is not None:
            return cached
        pixels = self._geometry(self.tiles.read(row))
        if self._mode == "auto":
            self._mode = "memory" if pixels.nbytes * len(self.tiles.ids) < _CACHE_LIMIT else "none"
        if self._mode == "memory":
            self._cache[row] = pixels
        return pixels

    def batch(self, rows: Int[np.ndarray, "b"]) -> UInt8[np.ndarray, "b 3 h w"]:
        """Read the pixels of these rows."""
        return np.stack([self._pixels(int(row)) for row in rows])

    def ahead(
        self, batches: Iterable[Int[np.ndarray, "_"]], depth: int = 4
    ) -> Iterator[tuple[Int[np.ndarray, "b"], UInt8[np.ndarray, "b 3 h w"]]]:
        """Yield each batch of rows with its pixels, reading `depth` batches ahead."""
        for rows, pixels in read_ahead(batches, lambda row: self._pixels(int(row)), self._pool, depth):
            yield rows, np.stack(pixels)
