"""Lay windows over an image, and stitch the window scores into a map, strip by strip.

Each pixel gets the mean score of the windows that cover it. All pixel rows between two consecutive window borders
therefore have the same values, and form a strip. Strips are computed from top to bottom, and only the scores of windows
that extend below the current strip are kept.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64


class Corner(NamedTuple):
    """Upper left corner of a window, in pixels."""

    left: int
    top: int


@dataclass(frozen=True)
class Strip:
    """Consecutive rows of a map that have the same values.

    Attributes:
        top: First row.
        bottom: Row after the last one.
        values: Score of each class (rows) in each pixel column.
    """

    top: int
    bottom: int
    values: Float64[np.ndarray, "c w"]


@dataclass(frozen=True)
class WindowGrid:
    """Windows of one size that cover an image; the last window of each row and column ends at the image border.

    Attributes:
        width: Width of the image in pixels; at least `edge`.
        height: Height of the image in pixels; at least `edge`.
        edge: Edge length of a window in pixels.
        stride: Distance between the starts of consecutive windows in pixels.
    """

    width: int
    height: int
    edge: int
    stride: int

    @property
    def lefts(self) -> list[int]:
        """First column of each window in a row."""
        return window_starts(self.width, self.edge, self.stride)

    @property
    def tops(self) -> list[int]:
        """First row of each row of windows."""
        return window_starts(self.height, self.edge, self.stride)

    def batches(self, size: int) -> Iterator[list[Corner]]:
        """Yield all windows row by row, `size` at a time."""
        batch: list[Corner] = []
        lefts = self.lefts
        for top in self.tops:
            for left in lefts:
                batch.append(Corner(left, top))
                if len(batch) == size:
                    yield batch
                    batch = []
        if batch:
            yield batch


def window_starts(length: int, side: int, step: int) -> list[int]:
    """Return the starts of windows that cover a length exactly; the last window may overlap more than the others.

    Args:
        length: Length to cover, at least `side`.
        side: Length of a window.
        step: Distance between consecutive starts.
    """
    starts = list(range(0, length - side + 1, step))
    return starts if starts[-1] == length - side else [*starts, length - side]


def stitch(grid: WindowGrid, scores: Iterable[Float32[np.ndarray, "_ c"]]) -> Iterator[Strip]:
    """Stitch window scores into strips; only the scores of windows that cover the current strip are in memory.

    Args:
        scores: One row per window, in the order of `grid.batches`, in batches of any size.
    """
    lefts, tops = np.array(grid.lefts), grid.tops
    active: deque[tuple[int, Float64[np.ndarray, "c w"]]] = deque()
    for number, row in enumerate(_regroup(scores, len(lefts))):
        at, following = tops[number], tops[number + 1] if number + 1 < len(tops) else grid.height
        active.append((at, _column_means(row, lefts, grid)))
        while at < following:
            while active[0][0] + grid.edge <= at:
                active.popleft()
            bottom = min(following, active[0][0] + grid.edge)
            yield Strip(at, bottom, np.mean([values for _, values in active], axis=0))
            at = bottom


def _regroup(scores: Iterable[Float32[np.ndarray, "_ c"]], size: int) -> Iterator[Float32[np.ndarray, "m c"]]:
    """Regroup batches of scores into one batch per row of windows."""
    pending: list[Float32[np.ndarray, "_ c"]] = []
    for batch in scores:
        pending.append(batch)
        while sum(map(len, pending)) >= size:
            joined = np.concatenate(pending)
            yield joined[:size]
            pending = [joined[size:]]


def _column_means(
    scores: Float32[np.ndarray, "m c"], lefts: np.ndarray, grid: WindowGrid
) -> Float64[np.ndarray, "c w"]:
    """Return the mean score in each pixel column over the windows of a row that cover the column."""
    steps = np.zeros((scores.shape[1] + 1, grid.width + 1))
    columns = np.concatenate([scores.T.astype(np.float64), np.ones((1, len(lefts)))])
    steps[:, lefts] += columns  # no two windows of a row begin, or end, in the same column
    steps[:, lefts + grid.edge] -= columns
    sums = steps.cumsum(axis=1)[:, :-1]
    return np.asarray(sums[:-1] / sums[-1])


def average_strips(maps: Sequence[Iterator[Strip]]) -> Iterator[Strip]:
    """Average several maps of the same image, such as maps from windows at several scales."""
    current = [next(strips) for strips in maps]
    top = 0
    while True:
        bottom = min(strip.bottom for strip in current)
        yield Strip(top, bottom, np.mean([strip.values for strip in current], axis=0))
        top = bottom
        for index, strips in enumerate(maps):
            if current[index].bottom == bottom:
                following = next(strips, None)
                if following is None:
                    return
                current[index] = following


def fill(strips: Iterable[Strip], classes: int, height: int, width: int) -> Float32[np.ndarray, "c h w"]:
    """Write the strips of a map into an array."""
    filled = np.empty((classes, height, width), dtype=np.float32)
    for strip in strips:
        filled[:, strip.top : strip.bottom] = strip.values[:, None]
    return filled
