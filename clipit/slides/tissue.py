"""Find tissue on the overview of a slide by its colour, and measure its share of each tile."""

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32
from PIL import Image

_RANGE = (0.04, 0.10)
"""Limits of the threshold: Otsu's method alone would divide glass, or tissue, where there is nothing else."""
_DARK = 0.2  # brightness of black ink and of the edge of a slide
_PEN = 0.06  # by which green exceeds the other colours in green ink
_BLUE_PEN = 0.35  # by which blue exceeds red in blue ink; haematoxylin reaches about 0.25
_SMALLEST_PART = 0.01  # mm2
_SMALLEST_HOLE = 0.02  # mm2


def find_tissue(overview: Image.Image, mpp: float) -> Bool[np.ndarray, "h w"]:
    """Find tissue by the saturation of its colour, with Otsu's threshold between 0.04 and 0.10.

    Ink of pens (green, blue, black) is left out as far as its colour tells. Holes below 0.02 mm2 are filled and parts
    below 0.01 mm2 dropped. Meant for haematoxylin and eosin; weak stains and immunohistochemistry may need contours.

    Args:
        overview: RGB image of the whole slide.
        mpp: Micrometres per pixel of the overview.
    """
    from scipy import ndimage

    pixels = np.asarray(overview, dtype=np.float32) / 255
    smooth = np.stack([ndimage.uniform_filter(pixels[..., channel], 3, mode="nearest") for channel in range(3)], -1)
    brightest, darkest = smooth.max(axis=-1), smooth.min(axis=-1)
    saturation = np.where(brightest > 0, (brightest - darkest) / np.maximum(brightest, 1e-6), 0).astype(np.float32)
    threshold = float(np.clip(otsu(saturation), *_RANGE))
    red, green, blue = smooth[..., 0], smooth[..., 1], smooth[..., 2]
    ink = (green - np.maximum(red, blue) > _PEN) | (blue - red > _BLUE_PEN) | (brightest < _DARK)
    tissue = (saturation > threshold) & ~ink
    area = (mpp / 1000) ** 2
    return remove_small(tissue, _SMALLEST_PART / area, _SMALLEST_HOLE / area)


def otsu(values: Float32[np.ndarray, "h w"]) -> float:
    """Return the threshold that maximises the variance between two classes (Otsu, 1979), of values in 0..1."""
    counts, edges = np.histogram(values, bins=256, range=(0, 1))
    weights = counts.astype(np.float64)
    middles = (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(weights), weights.sum()
    mean_below = np.cumsum(weights * middles)
    above = total - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mean_below / below - (mean_below[-1] - mean_below) / above) ** 2
    if not np.isfinite(between).any():
        return float(values.flat[0])
    return float(edges[int(np.nanargmax(np.where(np.isfinite(between), between, -1))) + 1])


def remove_small(mask: Bool[np.ndarray, "h w"], part: float, hole: float) -> Bool[np.ndarray, "h w"]:
    """Drop connected parts below `part` pixels, then fill holes below `hole` pixels."""
    kept = ~_small(mask, part) & mask
    return np.asarray(kept | _small(~kept, hole, inside=True), dtype=np.bool_)


def _small(mask: Bool[np.ndarray, "h w"], area: float, *, inside: bool = False) -> Bool[np.ndarray, "h w"]:
    """Return the connected parts below an area; with `inside`, only those that do not touch the border."""
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    small = sizes < area
    small[0] = False
    if inside:
        border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        small[np.unique(border)] = False
    return np.asarray(small[labels], dtype=np.bool_)


class TissueShare:
    """Share of a mask in rectangles, exact for fractions of pixels, from a summed-area table."""

    def __init__(self, mask: Bool[np.ndarray, "h w"], downsample: float) -> None:
        """Sum up the mask.

        Args:
            mask: Tissue on the overview.
            downsample: Pixels of level 0 per pixel of the overview.
        """
        self._downsample = downsample
        self._sums: Float64[np.ndarray, "h w"] = np.pad(mask.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    def of_squares(
        self, x: Int32[np.ndarray, " n"], y: Int32[np.ndarray, " n"], extent: float
    ) -> Float32[np.ndarray, " n"]:
        """Return the share of tissue in squares; what lies outside the slide is not tissue.

        Args:
            x: Left edges in pixels of level 0.
            y: Upper edges.
            extent: Edge in pixels of level 0.
        """
        left, right = x / self._downsample, (x + extent) / self._downsample
        top, bottom = y / self._downsample, (y + extent) / self._downsample
        total = self._at(bottom, right) - self._at(top, right) - self._at(bottom, left) + self._at(top, left)
        return np.asarray(np.clip(total / (extent / self._downsample) ** 2, 0, 1), dtype=np.float32)

    def _at(self, rows: Float64[np.ndarray, " n"], columns: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """Interpolate the sums, which are linear in both directions inside a pixel."""
        height, width = self._sums.shape
        rows, columns = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
        row, column = np.minimum(rows.astype(int), height - 2), np.minimum(columns.astype(int), width - 2)
        down, right = rows - row, columns - column
        sums = self._sums
        upper = sums[row, column] * (1 - right) + sums[row, column + 1] * right
        lower = sums[row + 1, column] * (1 - right) + sums[row + 1, column + 1] * right
        return np.asarray(upper * (1 - down) + lower * down)
