"""Sliding-window segmentation: a tile model classifies overlapping windows, and scores are averaged per pixel."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float32, Int16, UInt8
from PIL import Image
from torch import Tensor

from clipit.errors import DataError
from clipit.images.device_copies import copy_ahead, stack
from clipit.images.read_ahead import read_ahead, reading_threads
from clipit.runs.tile_scorer import TileScorer
from clipit.segmentation.stitching import Corner, Strip, WindowGrid, average_strips, fill, stitch

_MIN_EDGE = 4
"""Minimum edge length of a window in image pixels."""


@dataclass(frozen=True)
class WindowModel:
    """A tile model that classifies windows of images at the resolution it was trained on.

    Attributes:
        class_of: Binary matrix that maps model classes (rows) to mask classes (columns).
        overlap: Overlap of adjacent windows as a fraction of their edge length.
        batch_size: Windows per forward pass.
    """

    scorer: TileScorer
    class_of: Float32[np.ndarray, "k c"]
    overlap: float = 0.5
    batch_size: int = 64

    def edge(self, mpp: float, scale: float) -> int:
        """Return the edge length of a window in image pixels.

        The field of view is that of the model's training tiles times the scale. If the model does not state the
        resolution of its training tiles, the image is assumed to have the same resolution.

        Args:
            mpp: Micrometres per pixel of the image; nan if unknown.
            scale: Factor by which the model's field of view is multiplied.

        Raises:
            DataError: The model specifies a resolution, but the image's resolution is unknown.
        """
        pixels = self.scorer.tile_pixels or self.scorer.preprocess.size
        if self.scorer.mpp is None:
            return max(_MIN_EDGE, round(pixels * scale))
        if math.isnan(mpp):
            raise DataError(
                f"windows of {self.scorer.title} are {pixels * self.scorer.mpp:g} micrometres wide, but the resolution "
                "of a tile is unknown",
                where="tiles.mpp",
                fix="add an mpp column with the micrometres per pixel of each tile, or set tiles.mpp",
            )
        return max(_MIN_EDGE, round(pixels * self.scorer.mpp / mpp * scale))

    def strips(self, image: Image.Image, mpp: float, scale: float) -> Iterator[Strip]:
        """Yield the probabilities of the mask classes over an image, strip by strip from top to bottom.

        An image smaller than a window is padded by reflection.
        """
        edge = self.edge(mpp, scale)
        preprocess = replace(self.scorer.preprocess, mode="squash", resize_to=self.scorer.preprocess.size)

        def score(padded: UInt8[np.ndarray, "h w 3"], grid: WindowGrid) -> Iterator[Float32[np.ndarray, "_ c"]]:
            whole = Image.fromarray(padded)

            def read(corner: Corner) -> UInt8[np.ndarray, "3 s s"]:
                box = (corner.left, corner.top, corner.left + grid.edge, corner.top + grid.edge)
                return preprocess.pixels(whole.crop(box))

            with reading_threads() as pool:
                device = self.scorer.device
                batches = read_ahead(grid.batches(self.batch_size), read, pool)
                for _, pixels in copy_ahead(((batch, stack(crops, device)) for batch, crops in batches), device):
                    yield self._classify(pixels)

        return window_strips(np.asarray(image.convert("RGB")), edge, self.overlap, score)

    def _classify(self, pixels: UInt8[Tensor, "b 3 s s"]) -> Float32[np.ndarray, "b c"]:
        """Return the probabilities of the mask classes, renormalised without unmapped model classes."""
        with torch.inference_mode():
            scores = self.scorer.compute(pixels)[0]
        summed = self.scorer.probabilities(scores.float().cpu().numpy()) @ self.class_of
        return np.asarray(summed / np.maximum(summed.sum(axis=1, keepdims=True), 1e-12), dtype=np.float32)

    def probabilities(
        self, image: Image.Image, mpp: float, scales: Sequence[float | int]
    ) -> Float32[np.ndarray, "c h w"]:
        """Return the probability of each class at each pixel, averaged over the scales."""
        strips = average_strips([self.strips(image, mpp, scale) for scale in scales])
        return fill(strips, self.class_of.shape[1], image.height, image.width)

    def majority(
        self, mask: Int16[np.ndarray, "h w"], mpp: float, scales: Sequence[float | int]
    ) -> Float32[np.ndarray, "c h w"]:
        """Return the probabilities if every window were assigned its majority class among the labelled pixels."""
        classes = self.class_of.shape[1]
        maps = [
            window_strips(mask, self.edge(mpp, scale), self.overlap, _majority_scores(classes, self.batch_size))
            for scale in scales
        ]
        return fill(average_strips(maps), classes, *mask.shape)


WindowScores = Callable[[np.ndarray, WindowGrid], Iterable[Float32[np.ndarray, "_ c"]]]
"""Function that maps an image (padded to at least one window) and its window grid to the scores of each window."""


def window_strips(pixels: np.ndarray, edge: int, overlap: float, score: WindowScores) -> Iterator[Strip]:
    """Lay windows over an image, and yield their scores as strips, cropped to the image.

    Args:
        pixels: Image or mask, [h, w] or [h, w, 3].
        edge: Edge length of a window in pixels.
        overlap: Overlap of adjacent windows as a fraction of their edge length.
        score: Function that computes the scores of all windows.
    """
    height, width = pixels.shape[:2]
    missing = max(0, edge - height), max(0, edge - width)
    before = missing[0] // 2, missing[1] // 2
    padding = [(first, total - first) for first, total in zip(before, missing, strict=True)]
    padded = np.pad(pixels, padding + [(0, 0)] * (pixels.ndim - 2), mode="symmetric") if any(missing) else pixels
    grid = WindowGrid(padded.shape[1], padded.shape[0], edge, max(1, round(edge * (1 - overlap))))
    for strip in stitch(grid, score(padded, grid)):
        top, bottom = max(0, strip.top - before[0]), min(height, strip.bottom - before[0])
        if top < bottom:
            yield Strip(top, bottom, strip.values[:, before[1] : before[1] + width])


def _majority_scores(classes: int, batch_size: int) -> WindowScores:
    """Return a function that scores each window by the majority class of its labelled pixels."""

    def score(mask: np.ndarray, grid: WindowGrid) -> Iterator[Float32[np.ndarray, "_ c"]]:
        sums = np.stack(
            [np.pad((mask == c).astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0))) for c in range(classes)], axis=2
        )
        for batch in grid.batches(batch_size):
            left, top = np.array(batch).T
            right, bottom = left + grid.edge, top + grid.edge
            areas = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
            yield np.eye(classes, dtype=np.float32)[areas.argmax(axis=1)]

    return score
