"""Polygons with holes: area, rasterisation to a mask, and tracing of a mask.

All coordinates are x and y in level-0 pixels of a slide, with the origin at the upper left corner of its first
pixel, so the centre of that pixel is (0.5, 0.5). This is the convention of QuPath.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer

_LEFT, _STRAIGHT, _RIGHT = -1, 0, 1


@dataclass(frozen=True)
class Polygon:
    """A polygon with holes, in level-0 pixels.

    Attributes:
        exterior: Corners of the outer ring; the last equals the first.
        holes: Corners of each hole, in the same form.
        name: Class or name of the area; empty if unknown.
    """

    exterior: Float64[np.ndarray, "_ 2"]
    holes: tuple[Float64[np.ndarray, "_ 2"], ...] = ()
    name: str = ""

    @property
    def area(self) -> float:
        """Area in square pixels, without the holes."""
        return abs(signed_area(self.exterior)) - sum(abs(signed_area(hole)) for hole in self.holes)

    @property
    def extent(self) -> Float64[np.ndarray, "2 2"]:
        """Smallest and largest x and y of all rings."""
        corners = np.concatenate([self.exterior, *self.holes])
        return np.stack([corners.min(axis=0), corners.max(axis=0)])

    def shifted(self, x: int, y: int) -> "Polygon":
        """Return the polygon moved to the right and down by these numbers of pixels."""
        distance = np.array([x, y], dtype=np.float64)
        return Polygon(self.exterior + distance, tuple(hole + distance for hole in self.holes), self.name)


def signed_area(ring: Float64[np.ndarray, "_ 2"]) -> float:
    """Return the area of a closed ring; positive if it runs clockwise on the screen, where y points down."""
    x, y = (ring - ring[0]).T  # relative to a corner, so that large coordinates lose no digits
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def rasterise(polygons: Sequence[Polygon], shape: tuple[int, int], downsample: float) -> Bool[np.ndarray, "h w"]:
    """Return the mask of the union of polygons.

    Pixel (row, column) of the mask covers `downsample` x `downsample` level-0 pixels. It is set if its centre
    ((column + 0.5) * downsample, (row + 0.5) * downsample) lies inside the outer ring of a polygon and outside its
    holes. A centre exactly on an upper or left border is inside, and a centre on a lower or right border is
    outside, so that adjacent polygons neither overlap nor leave a gap. Rings that cross themselves follow the even-odd
    rule.

    Args:
        polygons: Polygons in level-0 pixels; parts outside the mask are clipped.
        shape: Rows and columns of the mask.
        downsample: Level-0 pixels per mask pixel.
    """
    mask = np.zeros(shape, dtype=np.bool_)
    for polygon in polygons:
        ring = polygon.exterior / downsample - 0.5  # the centres of pixels are whole numbers
        left, top = (math.ceil(max(0.0, low)) for low in ring.min(axis=0))
        right, bottom = (
            math.ceil(min(float(size), high)) for size, high in zip(shape[::-1], ring.max(axis=0), strict=True)
        )
        if right <= left or bottom <= top:
            continue
        box = (top, bottom, left, right)
        inside = _inside(ring, box)
        for hole in polygon.holes:
            inside &= ~_inside(hole / downsample - 0.5, box)
        mask[top:bottom, left:right] |= inside
    return mask


def _inside(ring: Float64[np.ndarray, "_ 2"], box: tuple[int, int, int, int]) -> Bool[np.ndarray, "h w"]:
    """Return whether each whole-numbered point of a box (top, bottom, left, right) is inside a ring.

    Each row of points crosses edges of the ring; a point is inside if an odd number of crossings is on its left.
    """
    top, bottom, left, right = box
    swap = (ring[:-1, 1] > ring[1:, 1])[:, None]  # the same arithmetic for both directions of an edge
    upper, lower = np.where(swap, ring[1:], ring[:-1]), np.where(swap, ring[:-1], ring[1:])
    first = np.clip(np.ceil(upper[:, 1]), top, bottom).astype(np.int64)
    n_rows = np.clip(np.ceil(lower[:, 1]), top, bottom).astype(np.int64) - first
    edge = np.repeat(np.arange(len(upper)), n_rows)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows) + first[edge]
    (x, y), (dx, dy) = upper[edge].T, (lower - upper)[edge].T
    column = np.clip(np.ceil(x + (row - y) * dx / dy), left, right).astype(np.int64)
    crossings = np.zeros((bottom - top, right - left + 1), dtype=np.uint8)
    np.add.at(crossings, (row - top, column - left), 1)
    return (np.cumsum(crossings[:, :-1], axis=1, dtype=np.uint8) & 1).astype(np.bool_)  # overflow keeps the parity


def trace(mask: Bool[np.ndarray, "h w"], downsample: float = 1.0) -> list[Polygon]:
    """Return the outlines of a mask: one polygon with holes per connected part.

    Parts are connected through edges of pixels, not through corners. The outlines follow the edges of pixels exactly,
    so that `rasterise` reproduces the mask, and no ring touches itself.

    Args:
        downsample: Level-0 pixels per mask pixel.
    """
    from scipy import ndimage

    labels, n = ndimage.label(mask)
    return trace_regions(labels, n, downsample)


def trace_regions(labels: Integer[np.ndarray, "h w"], n: int, downsample: float = 1.0) -> list[Polygon]:
    """Return the outline of each region of a label map, in the order of the labels.

    Args:
        labels: 0 outside of the regions, and 1 to n in the regions, each of which is connected through edges of pixels.
        downsample: Level-0 pixels per map pixel.
    """
    exteriors: dict[int, Float64[np.ndarray, "_ 2"]] = {}
    holes: list[list[Float64[np.ndarray, "_ 2"]]] = [[] for _ in range(n)]
    for label, corners in _rings(labels):
        ring = corners * float(downsample)
        if signed_area(ring) > 0:
            exteriors[label] = ring
        else:
            holes[label - 1].append(ring)
    return [Polygon(exteriors[label], tuple(holes[label - 1])) for label in range(1, n + 1)]


def _rings(labels: Integer[np.ndarray, "h w"]) -> list[tuple[int, Int64[np.ndarray, "_ 2"]]]:
    """Return the label and corners of each closed ring; the region lies to the right of its ring.

    The borders of pixels are directed edges between their corners. Where two pixels of a region touch only at a corner,
    a ring turns left, so that it never touches itself.
    """
    padded = np.pad(labels, 1)
    north_west, north_east, south_west, south_east = (
        padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:],
    )  # fmt: skip
    sides = (  # pixel on the right and on the left of the edge from each corner to the east, south, west and north
        (south_east, north_east), (south_west, south_east), (north_west, south_west), (north_east, north_west),
    )  # fmt: skip
    owners = np.stack([np.where(right != left, right, 0) for right, left in sides]).reshape(-1)
    corners, width = padded[1:, 1:].size, padded.shape[1] - 1
    edges = np.flatnonzero(owners)
    direction, start = np.divmod(edges, corners)
    end = start + np.array([1, width, -1, -width])[direction]
    candidates = [(direction + turn) % 4 * corners + end for turn in (_LEFT, _STRAIGHT, _RIGHT)]
    following = np.select([owners[candidate] == owners[edges] for candidate in candidates], candidates)
    after = np.searchsorted(edges, following)
    turns = (direction[after] != direction).tolist()
    after, end, rings = after.tolist(), end.tolist(), []
    unvisited = bytearray(b"\1") * len(edges)
    for first in range(len(edges)):
        ring, at = [], first
        while unvisited[at]:
            unvisited[at] = 0
            if turns[at]:
                ring.append(end[at])
            at = after[at]
        if ring:
            y, x = np.divmod(np.array([*ring, ring[0]]), width)
            rings.append((int(owners[edges[first]]), np.stack([x, y], axis=1)))
    return rings
