"""Rendering primitives for batches of tiles: smooth noise and soft ellipses."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from clipit.errors import DataError

SIZE = 64
"""Edge length of a tile in pixels."""

Maps = Float32[np.ndarray, "n 64 64"]
_EDGE = np.arange(SIZE, dtype=np.float32)
ROWS: Float32[np.ndarray, "1 64 1"] = _EDGE[None, :, None]
COLUMNS: Float32[np.ndarray, "1 1 64"] = _EDGE[None, None, :]


def noise(rng: np.random.Generator, count: int, cells: int) -> Maps:
    """Draw value noise with unit standard deviation at the knots of a grid with `cells` cells along each edge.

    The interpolation uses no matrix product, so that the bytes do not depend on the number of threads.
    """
    knots = rng.standard_normal((count, cells + 1, cells + 1), dtype=np.float32)
    position = np.linspace(0, cells, SIZE, endpoint=False, dtype=np.float32)
    low = position.astype(np.int64)
    weight = position - low
    weight = weight * weight * (3 - 2 * weight)
    # take is twice as fast as indexing with an array
    rows = knots.take(low, axis=1) * (1 - weight)[:, None] + knots.take(low + 1, axis=1) * weight[:, None]
    maps = rows.take(low, axis=2) * (1 - weight) + rows.take(low + 1, axis=2) * weight
    return np.asarray(maps, dtype=np.float32)


def per_tile(values: object) -> Float32[np.ndarray, "n 1 1"]:
    """Reshape one value per tile so that it broadcasts with maps."""
    return np.asarray(values, dtype=np.float32)[:, None, None]


def ramp(values: Float32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Clip to 0..1, which turns a distance in pixels into an edge about one pixel wide."""
    return np.asarray(np.clip(values, 0.0, 1.0), dtype=np.float32)


@dataclass(frozen=True)
class Spots:
    """Soft ellipses (nuclei, vacuoles): tile, centre, radius and shape of each, in pixels."""

    tile: Int64[np.ndarray, " m"]
    x: Float32[np.ndarray, " m"]
    y: Float32[np.ndarray, " m"]
    radius: Float32[np.ndarray, " m"]
    stretch: Float32[np.ndarray, " m"]
    """The semi-major axis is radius * stretch, the semi-minor axis radius / stretch."""
    angle: Float32[np.ndarray, " m"]
    depth: Float32[np.ndarray, " m"]


def make_spots(
    tile: Int64[np.ndarray, " m"],
    x: object,
    y: object,
    radius: object,
    stretch: object,
    angle: object,
    depth: object,
) -> Spots:
    """Create spots from values that broadcast to one per spot."""
    shaped = [
        np.broadcast_to(np.asarray(v, dtype=np.float32), tile.shape) for v in (x, y, radius, stretch, angle, depth)
    ]
    return Spots(tile, *shaped)


def splat(canvas: Maps, spots: Spots) -> None:
    """Draw spots on the canvas in place; where spots overlap, the one with the larger depth is visible."""
    if not canvas.flags.c_contiguous:  # reshape would draw on a copy
        raise DataError("splat needs a C-contiguous canvas", fix="pass np.ascontiguousarray(canvas)")
    extent = spots.radius * spots.stretch
    for low, high in ((0.0, 3.5), (3.5, 6.5), (6.5, 13.0)):
        chosen = (extent >= low) & (extent < high)
        if chosen.any():
            _splat_window(canvas, spots, np.flatnonzero(chosen), half=int(high + 1.5))


def _splat_window(canvas: Maps, spots: Spots, chosen: Int64[np.ndarray, " k"], half: int) -> None:
    x, y = spots.x[chosen], spots.y[chosen]
    radius, stretch = spots.radius[chosen, None, None], spots.stretch[chosen, None, None]
    offsets = np.arange(-half, half + 1)
    columns = np.floor(x).astype(np.int64)[:, None, None] + offsets[None, None, :]
    rows = np.floor(y).astype(np.int64)[:, None, None] + offsets[None, :, None]
    dx = columns.astype(np.float32) - x[:, None, None]
    dy = rows.astype(np.float32) - y[:, None, None]
    cos, sin = np.cos(spots.angle[chosen])[:, None, None], np.sin(spots.angle[chosen])[:, None, None]
    along = (dx * cos + dy * sin) / stretch
    across = (dy * cos - dx * sin) * stretch
    value = spots.depth[chosen, None, None] * ramp(radius - np.sqrt(along * along + across * across) + 0.5)
    inside = (columns >= 0) & (columns < SIZE) & (rows >= 0) & (rows < SIZE) & (value > 0)
    flat = (spots.tile[chosen, None, None] * SIZE + rows) * SIZE + columns
    np.maximum.at(canvas.reshape(-1), flat[inside], value[inside])
