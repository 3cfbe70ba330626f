"""Grid of the tissue tiles of a slide at one resolution; a tile's id contains its position."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, Int64

from clipit.config.data import SlidesConfig
from clipit.errors import DataError
from clipit.slides.option_names import KEYS, OptionNames

_TILE_ID = re.compile(r"^(.+)@(\d+),(\d+),(\d+)$", re.DOTALL)
_MIN_EDGE = 16  # edge length of a tile in level-0 pixels
_MAX_TILES = 2**26  # per grid, including tiles without tissue
_BLOCK = 2**20  # tiles whose tissue is measured at once


@dataclass(frozen=True)
class SlideGrid:
    """Tissue tiles of one slide; coordinates are pixels of its finest level (level 0).

    Attributes:
        width: Width of level 0.
        height: Height of level 0.
        mpp: Micrometres per level-0 pixel.
        edge: Tile edge length, rounded to whole pixels.
        step: Distance between the corners of neighbouring tiles; may be fractional, and smaller than the edge length
            (if tiles overlap).
        x: Left edge of each tile.
        y: Upper edge of each tile. Tiles are sorted by y, then x.
        tissue: Tissue fraction of each tile.
    """

    slide: str
    width: int
    height: int
    mpp: float
    edge: int
    step: float
    x: Int32[np.ndarray, " n"]
    y: Int32[np.ndarray, " n"]
    tissue: Float32[np.ndarray, " n"]

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.x)

    @property
    def ids(self) -> list[str]:
        """Ids of the tiles: `slide@x,y,edge`."""
        return [tile_id(self.slide, x, y, self.edge) for x, y in zip(self.x.tolist(), self.y.tolist(), strict=True)]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the complete grid, including tiles without tissue."""
        return max(1, math.ceil(self.height / self.step)), max(1, math.ceil(self.width / self.step))

    @property
    def cells(self) -> Int64[np.ndarray, "n 2"]:
        """Row and column of each tile in the complete grid."""
        return np.rint(np.stack([self.y, self.x], axis=1) / self.step).astype(np.int64)


def make_grid(
    slide: str,
    width: int,
    height: int,
    mpp: float,
    config: SlidesConfig,
    share: Callable[[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"], float], Float32[np.ndarray, " n"]],
    options: OptionNames = KEYS,
) -> SlideGrid:
    """Lay a grid over a slide and keep the tiles with enough tissue; tiles may extend beyond the right and lower edge.

    Args:
        width: Width of level 0.
        height: Height of level 0.
        mpp: Micrometres per level-0 pixel.
        config: Resolution, size and overlap of tiles, and their minimum tissue fraction.
        share: Function that returns the tissue fractions of tiles, given their left edges, upper edges and edge length.

    Raises:
        DataError: The tiles are smaller than 16 level-0 pixels, or there are more than 67 million.
    """
    extent = tile_extent(mpp, config)
    if extent < _MIN_EDGE:
        raise DataError(
            f"{config.pixels}-pixel tiles at {config.mpp:g} µm per pixel cover only {extent:.2g} x "
            f"{extent:.2g} pixels of the slide, which has {mpp:g} µm per pixel",
            where=slide,
            fix=f"read coarser tiles ({options.tile_mpp}), or correct the micrometres per pixel of the slide "
            f"({options.mpp})",
        )
    step = max(1.0, extent * (1 - config.overlap))
    if (width / step) * (height / step) > _MAX_TILES:
        raise DataError(
            f"a grid of {width / step:.0f} x {height / step:.0f} tiles is too large",
            where=slide,
            fix=f"read coarser tiles ({options.tile_mpp}), or let them overlap less "
            f"({options.overlap}){options.elsewhere}",
        )
    columns, rows = (np.rint(np.arange(0, length, step)).astype(np.int32) for length in (width, height))
    blocks = []
    for start in range(0, len(rows), block := max(1, _BLOCK // len(columns))):  # limits the memory
        part = rows[start : start + block]
        x, y = np.tile(columns, len(part)), np.repeat(part, len(columns))
        tissue = share(x, y, extent)
        has_tissue = tissue >= config.min_tissue
        blocks.append((x[has_tissue], y[has_tissue], tissue[has_tissue]))
    x, y, tissue = (np.concatenate(arrays) for arrays in zip(*blocks, strict=True))
    return SlideGrid(slide, width, height, mpp, round(extent), step, x, y, tissue)


def tile_extent(mpp: float, config: SlidesConfig) -> float:
    """Return the edge length of a tile in level-0 pixels; may be fractional."""
    return config.pixels * config.mpp / mpp


def tile_id(slide: str, x: int, y: int, edge: int) -> str:
    """Return the id of a tile, `slide@x,y,edge` in level-0 pixels."""
    return f"{slide}@{x},{y},{edge}"


def parse_tile_id(name: str) -> tuple[str, int, int, int]:
    """Return the slide, x, y and edge that a tile id contains.

    Raises:
        DataError: The id is not of the form `slide@x,y,edge`.
    """
    match = _TILE_ID.match(name)
    if match is None:
        raise DataError("not a tile id", where=name, fix="use ids of the form slide@x,y,edge")
    return match[1], int(match[2]), int(match[3]), int(match[4])
