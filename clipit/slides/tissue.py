"""Find tissue by colour on a slide's overview, and measure the tissue fraction of each tile."""

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, UInt8
from PIL import Image

_RANGE = (0.04, 0.10)
"""Limits of the threshold; without them, Otsu's method would also split an overview of only glass or only tissue."""
_DARK = 0.2  # maximum brightness of black ink and of the edge of a slide
_PEN = 0.06  # minimum excess of green over the other colours in green ink
_BLUE_PEN = 0.35  # minimum excess of blue over red in blue ink; haematoxylin reaches about 0.25
_STRIP = 16  # rows measured at once: few enough for the processor's cache
_MIN_PART = 0.01  # mm2; smaller parts are dropped
_MIN_HOLE = 0.02  # mm2; smaller holes are filled


def find_tissue(overview: Image.Image, mpp: float) -> Bool[np.ndarray, "h w"]:
    """Find tissue by the saturation of its colour, with Otsu's threshold between 0.04 and 0.10.

    Pen ink (green, blue, black) is excluded where its colour identifies it. Holes below 0.02 mm2 are filled and
    parts below 0.01 mm2 dropped. The method is meant for haematoxylin and eosin; weak stains and immunohistochemistry
    may need contours.

    Args:
        mpp: Micrometres per pixel of the overview.
    """
    pixels: UInt8[np.ndarray, "h w 3"] = np.asarray(overview if overview.mode == "RGB" else overview.convert("RGB"))
    saturation = np.empty(pixels.shape[:2], dtype=np.float32)
    ink = np.empty(pixels.shape[:2], dtype=np.bool_)
    for top in range(0, len(pixels), _STRIP):
        strip = slice(top, min(top + _STRIP, len(pixels)))
        saturation[strip], ink[strip] = _measure_colour(pixels, strip.start, strip.stop)
    threshold = float(np.clip(otsu(saturation), *_RANGE))
    tissue = (saturation > threshold) & ~ink
    area = (mpp / 1000) ** 2
    return remove_small(tissue, _MIN_PART / area, _MIN_HOLE / area)


def _measure_colour(
    pixels: UInt8[np.ndarray, "h w 3"], top: int, bottom: int
) -> tuple[Float32[np.ndarray, "n w"], Bool[np.ndarray, "n w"]]:
    """Measure saturation and find ink in rows of pixels, after averaging 3 x 3 pixels.

    Integer sums over the 9 pixels are used instead of means; pixels at the border are repeated beyond it.
    """
    above, below = max(0, top - 1), min(len(pixels), bottom + 1)
    missing = (above - top + 1, bottom + 1 - below)  # 1 at the border of the image, otherwise 0
    rows = np.pad(pixels[above:below].astype(np.uint16), (missing, (1, 1), (0, 0)), mode="edge")
    across = rows[:, :-2] + rows[:, 1:-1]
    across += rows[:, 2:]
    sums = across[:-2] + across[1:-1]
    sums += across[2:]
    red, green, blue = (np.ascontiguousarray(sums[..., channel]) for channel in range(3))
    red_or_blue = np.maximum(red, blue)
    brightest, darkest = np.maximum(red_or_blue, green), np.minimum(np.minimum(red, blue), green)
    saturation = np.divide(brightest - darkest, np.maximum(brightest, 1), dtype=np.float32)
    white = 9 * 255  # the sum of nine white pixels
    green_ink, blue_ink = green > red_or_blue + int(_PEN * white), blue > red + int(_BLUE_PEN * white)
    ink = green_ink | blue_ink | (brightest < _DARK * white)
    return saturation, ink


def otsu(values: Float32[np.ndarray, "h w"]) -> float:
    """Return Otsu's threshold (1979) for values from 0 to 1, which maximises the variance between the two classes."""
    weights, edges = np.zeros(256), np.arange(257) / 256
    for top in range(0, len(values), _STRIP):
        bins = np.minimum(values[top : top + _STRIP] * 256, 255).astype(np.uint8)
        weights += np.bincount(bins.ravel(), minlength=256)
    middles = (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(weights), weights.sum()
    mean_below = np.cumsum(weights * middles)
    above = total - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mean_below / below - (mean_below[-1] - mean_below) / above) ** 2
    if not np.isfinite(between).any():
        return float(values.flat[0])
    return float(edges[int(np.nanargmax(np.where(np.isfinite(between), between, -1))) + 1])


def remove_small(mask: Bool[np.ndarray, "h w"], smallest: float, hole: float) -> Bool[np.ndarray, "h w"]:
    """Drop connected regions below `smallest` pixels, then fill holes below `hole` pixels."""
    large_parts = ~_small_parts(mask, smallest) & mask
    return np.asarray(large_parts | _small_parts(~large_parts, hole, inside=True), dtype=np.bool_)


def _small_parts(mask: Bool[np.ndarray, "h w"], area: float, *, inside: bool = False) -> Bool[np.ndarray, "h w"]:
    """Return a mask of the connected parts smaller than `area`; if `inside`, only those not at the border."""
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    strips = [slice(top, top + _STRIP) for top in range(0, len(labels), _STRIP)]
    sizes = np.zeros(count + 1, dtype=np.int64)
    for strip in strips:
        sizes += np.bincount(labels[strip].ravel(), minlength=count + 1)
    small = sizes < area
    small[0] = False
    if not small.any():
        return np.zeros_like(mask)
    if inside:
        border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        small[np.unique(border)] = False
    result = np.empty(mask.shape, dtype=np.bool_)
    for strip in strips:
        result[strip] = small[labels[strip]]
    return result


class TissueShare:
    """Fraction of mask pixels in rectangles, exact for fractions of pixels, from a summed-area table."""

    def __init__(self, mask: Bool[np.ndarray, "h w"], downsample: float) -> None:
        """Compute the summed-area table.

        Args:
            downsample: Level-0 pixels per overview pixel.
        """
        self._downsample = downsample
        self._sums: Int32[np.ndarray, "h w"] = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), dtype=np.int32)
        np.cumsum(mask, axis=1, dtype=np.int32, out=self._sums[1:, 1:])
        for row in range(1, len(self._sums)):  # much faster than a cumulative sum over the first axis
            self._sums[row] += self._sums[row - 1]

    def of_squares(
        self, x: Int32[np.ndarray, " n"], y: Int32[np.ndarray, " n"], extent: float
    ) -> Float32[np.ndarray, " n"]:
        """Return the tissue fraction of squares; the area outside the slide counts as glass.

        Args:
            x: Left edges in level-0 pixels.
            y: Upper edges in level-0 pixels.
            extent: Edge length in level-0 pixels.
        """
        left, right = x / self._downsample, (x + extent) / self._downsample
        top, bottom = y / self._downsample, (y + extent) / self._downsample
        total = (
            self._sums_at(bottom, right)
            - self._sums_at(top, right)
            - self._sums_at(bottom, left)
            + self._sums_at(top, left)
        )
        return np.asarray(np.clip(total / (extent / self._downsample) ** 2, 0, 1), dtype=np.float32)

    def _sums_at(
        self, rows: Float64[np.ndarray, " n"], columns: Float64[np.ndarray, " n"]
    ) -> Float64[np.ndarray, " n"]:
        """Interpolate the sums, which are linear in both directions inside a pixel."""
        height, width = self._sums.shape
        rows, columns = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
        row, column = np.minimum(rows.astype(int), height - 2), np.minimum(columns.astype(int), width - 2)
        down, right = rows - row, columns - column
        sums = self._sums
        upper = sums[row, column] * (1 - right) + sums[row, column + 1] * right
        lower = sums[row + 1, column] * (1 - right) + sums[row + 1, column + 1] * right
        return np.asarray(upper * (1 - down) + lower * down)
