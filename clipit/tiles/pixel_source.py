"""Tiles as batches of pixels, read ahead by threads while the model works."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from jaxtyping import Int, UInt8
from PIL.Image import Image

from clipit.tiles.tileset import TileSet

Geometry = Callable[[Image], UInt8[np.ndarray, "3 h w"]]
"""Resizes and crops one image as a model wants it."""

_CACHE_LIMIT = 2 * 1024**3  # bytes; `cache: auto` stays below it


class PixelSource:
    """Resized tiles by row, kept in memory when asked for.

    Resizing and cropping are the same in every epoch, so they are done once; what changes per step
    (augmentation, normalisation) works on the whole batch, on the model's device.
    """

    def __init__(self, tiles: TileSet, geometry: Geometry, cache: str = "none", threads: int = 0) -> None:
        """Read `tiles` through `geometry` with so many threads (0: one per core, at most 8).

        Args:
            tiles: The tiles; rows count from 0.
            geometry: To uint8 pixels [3, h, w], the same size for every tile.
            cache: `memory`, `none`, or `auto` (memory when all of it takes less than 2 GiB).
            threads: Readers.
        """
        self.tiles = tiles
        self._geometry = geometry
        self._mode = cache
        self._cache: dict[int, UInt8[np.ndarray, "3 h w"]] = {}
        self._pool = ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1), thread_name_prefix="tiles")

    def _pixels(self, row: int) -> UInt8[np.ndarray, "3 h w"]:
        kept = self._cache.get(row)
        if kept is not None:
            return kept
        pixels = self._geometry(self.tiles.read(row))
        if self._mode == "auto":
            self._mode = "memory" if pixels.nbytes * len(self.tiles.ids) < _CACHE_LIMIT else "none"
        if self._mode == "memory":
            self._cache[row] = pixels
        return pixels

    def batch(self, rows: Int[np.ndarray, "b"]) -> UInt8[np.ndarray, "b 3 h w"]:
        """Pixels of these rows, read now."""
        return np.stack([self._pixels(int(row)) for row in rows])

    def ahead(
        self, batches: Iterable[Int[np.ndarray, "_"]], depth: int = 4
    ) -> Iterator[tuple[Int[np.ndarray, "b"], UInt8[np.ndarray, "b 3 h w"]]]:
        """Each batch of rows with its pixels, `depth` batches read ahead."""
        waiting: deque[tuple[Int[np.ndarray, "b"], list[Future[UInt8[np.ndarray, "3 h w"]]]]] = deque()

        def taken() -> tuple[Int[np.ndarray, "b"], UInt8[np.ndarray, "b 3 h w"]]:
            """The batch that was asked for first, when all of it is read."""
            rows, futures = waiting.popleft()
            return rows, np.stack([future.result() for future in futures])

        try:
            for rows in batches:
                waiting.append((rows, [self._pool.submit(self._pixels, int(row)) for row in rows]))
                if len(waiting) > depth:
                    yield taken()
            while waiting:
                yield taken()
        finally:
            for _, futures in waiting:
                for future in futures:
                    future.cancel()
