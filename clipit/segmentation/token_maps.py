"""Token maps: patch tokens of images of any size, from overlapping windows of the model's input size.

Images are resampled to the resolution that the model was trained on. Position embeddings are not interpolated here:
`backbone.pixels` selects a larger window for models whose library can interpolate them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, Integer, UInt8
from PIL import Image

from clipit.errors import ModelError
from clipit.segmentation.stitching import window_starts
from clipit.tiles.mask_files import IGNORED

if TYPE_CHECKING:
    from clipit.models.patch_tokens import PatchTokens

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Lattice:
    """Grid of token cells over an image; the last cells may extend beyond its border.

    Attributes:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        cell: Edge length of a cell in image pixels.
        rows: Number of cells from top to bottom.
        columns: Number of cells from left to right.
    """

    height: int
    width: int
    cell: float
    rows: int
    columns: int

    def to_pixels(self, values: Float[np.ndarray, "rows columns c"]) -> Float32[np.ndarray, "c h w"]:
        """Interpolate cell values linearly at the centres of the image's pixels."""
        down, right = self._interpolation(self.height, self.rows), self._interpolation(self.width, self.columns)
        upright = values[down[0]] * (1 - down[2])[:, None, None] + values[down[1]] * down[2][:, None, None]
        planes = upright.transpose(2, 0, 1)
        result = planes[:, :, right[0]] * (1 - right[2]) + planes[:, :, right[1]] * right[2]
        return np.asarray(result, dtype=np.float32)

    def to_cells(self, codes: Integer[np.ndarray, "h w"], classes: int) -> Float32[np.ndarray, "rows columns c"]:
        """Return the fraction of each cell's pixels that belong to each class; ignored pixels (-1) belong to none."""
        row = self._cell_of(self.height, self.rows)
        column = self._cell_of(self.width, self.columns)
        flat = (row[:, None] * self.columns + column) * classes + codes
        counts = np.bincount(flat[codes != IGNORED], minlength=self.rows * self.columns * classes)
        area = np.bincount(row, minlength=self.rows)[:, None] * np.bincount(column, minlength=self.columns)
        shares = counts.reshape(self.rows, self.columns, classes) / np.maximum(area, 1)[:, :, None]
        return np.asarray(shares, dtype=np.float32)

    def expand(self, codes: Integer[np.ndarray, "rows columns"]) -> Integer[np.ndarray, "h w"]:
        """Assign to each pixel of the image the class of its cell."""
        return np.asarray(
            codes[self._cell_of(self.height, self.rows)[:, None], self._cell_of(self.width, self.columns)]
        )

    def _cell_of(self, length: int, cells: int) -> Int64[np.ndarray, " _"]:
        return np.asarray(np.minimum((np.arange(length) + 0.5) / self.cell, cells - 1), dtype=np.int64)

    def _interpolation(
        self, length: int, cells: int
    ) -> tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"], Float32[np.ndarray, " _"]]:
        """Return the cells before and after each pixel, and the weight of the cell after it."""
        position = np.clip((np.arange(length) + 0.5) / self.cell - 0.5, 0, cells - 1)
        before = np.floor(position).astype(np.int64)
        return before, np.minimum(before + 1, cells - 1), (position - before).astype(np.float32)


def lattice_of(height: int, width: int, mpp: float, tokens: "PatchTokens") -> Lattice:
    """Lay the grid of a model's token cells over an image.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        mpp: Micrometres per pixel of the image; nan if unknown, in which case the model's value is assumed.

    Raises:
        ModelError: A token does not cover a whole number of pixels.
    """
    patch = patch_of(tokens)
    scale = scale_of(mpp, tokens)
    rows, columns = (max(tokens.side, -(-max(1, round(edge * scale)) // patch)) for edge in (height, width))
    return Lattice(height, width, patch / scale, rows, columns)


def patch_of(tokens: "PatchTokens") -> int:
    """Return the edge length of a token in pixels of the model's input.

    Raises:
        ModelError: The edge length is not a whole number.
    """
    size = tokens.preprocess.size
    if size % tokens.side:
        raise ModelError(
            f"{tokens.side} x {tokens.side} tokens do not evenly divide the model's input of {size} x {size} pixels",
            where=tokens.name,
            fix="set backbone.pixels to a multiple of the patch size",
        )
    return size // tokens.side


def scale_of(mpp: float, tokens: "PatchTokens") -> float:
    """Return the resize factor for images: their mpp divided by the model's; 1 if either is unknown."""
    return 1.0 if tokens.mpp is None or np.isnan(mpp) else mpp / tokens.mpp


def token_rows(
    image: Image.Image, lattice: Lattice, tokens: "PatchTokens", overlap: float = 0.5, batch_size: int = 64
) -> Iterator[Float32[np.ndarray, "r columns d"]]:
    """Compute the token map of an image from top to bottom; only one row of windows is in memory.

    Where windows overlap, the tokens of a cell are averaged.

    Args:
        lattice: Cells of the image, from `lattice_of`.
        overlap: Overlap of adjacent windows as a fraction of their edge length.
        batch_size: Windows per forward pass.

    Yields:
        Complete rows of cells.
    """
    side, patch = tokens.side, patch_of(tokens)
    resized = _resized(image, lattice, patch, tokens)
    step = max(1, round(side * (1 - overlap)))
    tops, lefts = window_starts(lattice.rows, side, step), window_starts(lattice.columns, side, step)
    down, across = _coverage(tops, side, lattice.rows), _coverage(lefts, side, lattice.columns)
    sums = np.zeros((side, lattice.columns, tokens.dim), dtype=np.float32)
    for top, following in zip(tops, [*tops[1:], lattice.rows], strict=True):
        band = _padded_rows(resized, top * patch, side * patch, lattice.columns * patch)
        for start in range(0, len(lefts), batch_size):
            batch = lefts[start : start + batch_size]
            windows = np.stack([band[:, :, left * patch : (left + side) * patch] for left in batch])
            for left, grid in zip(batch, tokens.encode(torch.from_numpy(windows)).cpu().numpy(), strict=True):
                sums[:, left : left + side] += grid
        done = following - top
        yield sums[:done] / (down[top:following, None] * across)[:, :, None]
        sums[: side - done] = sums[done:].copy()
        sums[side - done :] = 0


def token_map(
    image: Image.Image, lattice: Lattice, tokens: "PatchTokens", overlap: float = 0.5, batch_size: int = 64
) -> Float32[np.ndarray, "rows columns d"]:
    """Compute the token map of an image; for the arguments, see `token_rows`."""
    return np.concatenate(list(token_rows(image, lattice, tokens, overlap, batch_size)))


def _coverage(starts: list[int], side: int, length: int) -> Float32[np.ndarray, " length"]:
    """Count the windows that cover each position."""
    counts = np.zeros(length, dtype=np.float32)
    for start in starts:
        counts[start : start + side] += 1
    return counts


def _resized(image: Image.Image, lattice: Lattice, patch: int, tokens: "PatchTokens") -> Image.Image:
    """Resize an image to the model's resolution."""
    scale = patch / lattice.cell
    size = (max(1, round(lattice.width * scale)), max(1, round(lattice.height * scale)))
    image = image if image.mode == "RGB" else image.convert("RGB")
    return image if image.size == size else image.resize(size, _FILTERS[tokens.preprocess.interpolation])


def _padded_rows(image: Image.Image, top: int, height: int, width: int) -> UInt8[np.ndarray, "3 height width"]:
    """Return rows of an image, padded beyond its border by reflection."""
    rows = _mirrored(np.arange(top, top + height), image.height)
    columns = _mirrored(np.arange(width), image.width)
    first = int(rows.min())
    pixels = np.asarray(image.crop((0, first, image.width, int(rows.max()) + 1)))
    return np.ascontiguousarray(pixels[rows - first][:, columns].transpose(2, 0, 1))


def _mirrored(positions: Int64[np.ndarray, " n"], length: int) -> Int64[np.ndarray, " n"]:
    """Reflect positions outside [0, length) back into this range, repeatedly if necessary."""
    within = positions % (2 * length)
    return np.asarray(np.where(within < length, within, 2 * length - 1 - within))
