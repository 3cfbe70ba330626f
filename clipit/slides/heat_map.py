"""Heat map of a slide: the scores of its tiles as an array, with overlapping tiles averaged."""

import math

import numpy as np
from jaxtyping import Float, Float32

from clipit.slides.grid import SlideGrid


def map_shape(grid: SlideGrid, downsample: float) -> tuple[int, int]:
    """Return the numbers of rows and columns of a map of a whole slide; the last ones may extend beyond the slide."""
    return math.ceil(grid.height / downsample), math.ceil(grid.width / downsample)


def heat_map(
    grid: SlideGrid, scores: Float[np.ndarray, "n classes"], downsample: float
) -> Float32[np.ndarray, "classes h w"]:
    """Return, for each pixel, the mean score per class of the tiles that contain its centre; NaN outside all tiles.

    In addition to the map, this needs memory for one count per pixel.

    Args:
        downsample: Level-0 pixels per map pixel, at most the edge length of a tile. If it equals the grid's step, the
            map has one pixel per grid cell. Gaps of less than one level-0 pixel between tiles, caused by rounded
            coordinates, are closed.

    Raises:
        ValueError: The pixels of the map are larger than the tiles, so some tiles would be lost.
    """
    if not 0 < downsample <= max(grid.edge, grid.step):
        raise ValueError(
            f"a map with {downsample} level-0 pixels per pixel would lose tiles with an edge of {grid.edge} pixels"
        )
    height, width = map_shape(grid, downsample)
    sums = np.zeros((scores.shape[1], height, width), dtype=np.float32)
    counts = np.zeros((height, width), dtype=np.int32)
    extent = grid.edge if grid.edge >= grid.step else math.ceil(grid.step)
    corners = np.stack([grid.y, grid.y + extent, grid.x, grid.x + extent], axis=1)
    # the centre of pixel i is i + 0.5 in pixels of the map
    borders = np.clip(np.ceil(corners / downsample - 0.5).astype(np.int64), 0, [height, height, width, width])
    values = scores.astype(np.float32)[:, :, None, None]
    for (top, bottom, left, right), value in zip(borders.tolist(), values, strict=True):
        sums[:, top:bottom, left:right] += value
        counts[top:bottom, left:right] += 1
    sums /= np.maximum(counts, 1)
    sums[:, counts == 0] = np.nan
    return sums


def halved(values: Float32[np.ndarray, "classes h w"]) -> Float32[np.ndarray, "classes h2 w2"]:
    """Return the mean of each block of 2 x 2 pixels, ignoring NaN; NaN where all four are NaN."""
    height, width = values.shape[1:]
    padded = np.pad(values, ((0, 0), (0, height % 2), (0, width % 2)), constant_values=np.nan)
    blocks = padded.reshape(len(values), padded.shape[1] // 2, 2, padded.shape[2] // 2, 2)
    counts = (~np.isnan(blocks)).sum(axis=(2, 4))
    sums = np.nansum(blocks, axis=(2, 4), dtype=np.float32)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).astype(np.float32)
