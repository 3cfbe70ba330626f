"""Agreement of a class map with a mask, compared with two references: a constant class, and the majority per tile.

The floor assigns the most frequent class to every pixel. The majority reference assigns to every tile the class that
covers most of it, with the same grid and averaging as the model's scores. If the tiles do not overlap, no other choice
of one class per tile has a higher accuracy, but another may have a higher Dice.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64, Integer

from clipit.errors import DataError
from clipit.slides.grid import SlideGrid
from clipit.slides.heat_map import heat_map
from clipit.tiles.mask_files import IGNORED


@dataclass(frozen=True)
class MapAgreement:
    """Agreement of a map with a mask, over the labelled pixels of one or several slides.

    Attributes:
        counts: Number of pixels by true class and mapped class; the last column counts pixels without a tile.
    """

    counts: Int64[np.ndarray, "c c1"]

    @property
    def accuracy(self) -> float:
        """Fraction of the labelled pixels with the correct class; pixels without a tile count as wrong."""
        return float(np.trace(self.counts[:, :-1]) / max(self.counts.sum(), 1))

    @property
    def dice(self) -> Float[np.ndarray, " c"]:
        """Dice of each class, 2 |A and B| / (|A| + |B|) over the labelled pixels; NaN for a class without pixels."""
        inside = np.diag(self.counts[:, :-1]).astype(np.float64)
        total = self.counts.sum(axis=1) + self.counts[:, :-1].sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.counts.sum(axis=1) > 0, 2 * inside / total, np.nan)

    @property
    def mean_dice(self) -> float:
        """Mean Dice of the classes that the mask contains."""
        return float(np.nanmean(self.dice))

    def plus(self, other: "MapAgreement") -> "MapAgreement":
        """Return the agreement over the pixels of this map and another one."""
        return MapAgreement(self.counts + other.counts)


def score_map(mapped: Integer[np.ndarray, "h w"], truth: Integer[np.ndarray, "h w"], classes: int) -> MapAgreement:
    """Compare a class map with a mask of the same shape.

    Args:
        mapped: Class of each pixel; -1 outside the tiles.
        truth: True class of each pixel; -1 is ignored.
        classes: Number of classes.

    Raises:
        DataError: No pixel is labelled.
    """
    labelled = truth != IGNORED
    if not labelled.any():
        raise DataError("the mask has no labelled pixel", fix="use a mask with at least one labelled pixel")
    columns = np.where(mapped == IGNORED, classes, mapped)[labelled]
    flat = truth[labelled].astype(np.int64) * (classes + 1) + columns
    return MapAgreement(np.bincount(flat, minlength=classes * (classes + 1)).reshape(classes, classes + 1))


def class_map(grid: SlideGrid, scores: Float[np.ndarray, "n c"], downsample: float) -> Int64[np.ndarray, "h w"]:
    """Return the most probable class of each pixel of a map, with overlapping tiles averaged; -1 outside the tiles."""
    means = heat_map(grid, scores, downsample)
    return np.where(np.isnan(means[0]), IGNORED, np.nan_to_num(means).argmax(axis=0)).astype(np.int64)


def majority_tiles(
    grid: SlideGrid, truth: Integer[np.ndarray, "h w"], classes: int, downsample: float
) -> Float32[np.ndarray, "n c"]:
    """Return one-hot scores of each tile's majority class among its labelled pixels; all 0 without labelled pixels.

    Args:
        truth: True class of each pixel of the map; -1 is ignored.
        downsample: Pixels of level 0 per pixel of the map.
    """
    probabilities = np.zeros((len(grid), classes), dtype=np.float32)
    sums = [np.pad((truth == c).astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0))) for c in range(classes)]
    height, width = truth.shape
    top, bottom = (np.clip(np.rint(edge / downsample).astype(int), 0, height) for edge in (grid.y, grid.y + grid.edge))
    left, right = (np.clip(np.rint(edge / downsample).astype(int), 0, width) for edge in (grid.x, grid.x + grid.edge))
    areas = np.stack([s[bottom, right] - s[top, right] - s[bottom, left] + s[top, left] for s in sums], axis=1)
    known = np.flatnonzero(areas.sum(axis=1) > 0)
    probabilities[known, areas[known].argmax(axis=1)] = 1
    return probabilities


def compare_with_mask(
    grid: SlideGrid,
    scores: Float[np.ndarray, "n c"],
    truth: Integer[np.ndarray, "h w"],
    downsample: float,
) -> Mapping[str, MapAgreement]:
    """Measure how well a map, the floor and the majority class per tile agree with a mask.

    Args:
        truth: True class of each pixel of the map (`clipit.slides.heat_map.map_shape`); -1 is ignored.
        downsample: Pixels of level 0 per pixel of the map.

    Returns:
        Agreement of `map`, `floor` (the most frequent class everywhere) and `majority` (the majority class of each
        tile).
    """
    classes = scores.shape[1]
    frequent = np.bincount(truth[truth != IGNORED].astype(np.int64), minlength=classes).argmax()
    majority = majority_tiles(grid, truth, classes, downsample)
    maps = {
        "map": class_map(grid, scores, downsample),
        "floor": np.full(truth.shape, frequent),
        "majority": class_map(grid, majority, downsample),
    }
    return {name: score_map(mapped, truth, classes) for name, mapped in maps.items()}
