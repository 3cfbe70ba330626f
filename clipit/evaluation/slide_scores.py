"""Pool the scores of a slide's tiles into slide scores: top-K means, mean, or fraction of tiles, optionally smoothed.

MI-Zero (Lu et al., CVPR 2023) compares each tile with one text embedding per class and pools the similarities of a
slide class by class. The functions here take any tile scores: such similarities, or a classifier's probabilities.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32, Float64, Int64

from clipit.errors import DataError, counted, shortlist

TOP_K = (1, 5, 10, 50, 100)
"""Values of K for the top-K means, as in CONCH's slide classification."""
POOLINGS = (*(f"top{k}" for k in TOP_K), "mean", "share")
"""Names of the pooling methods, from the fewest tiles to all."""
SCORE_PREFIX = "score_"
"""Prefix of the columns of `slide_table` with class scores."""
_NEIGHBOURHOOD = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]


@dataclass(frozen=True)
class PooledScore:
    """Scores of a slide for one pooling method.

    Attributes:
        pooling: Name from `POOLINGS`.
        smoothed: Whether the scores of each tile were first averaged with those of its neighbours.
        tiles: Number of tiles of the slide.
        pooled: Number of tiles that contribute to the score of a class: K, or all tiles of a slide with fewer than K.
        scores: Score of each class.
    """

    pooling: str
    smoothed: bool
    tiles: int
    pooled: int
    scores: Float32[np.ndarray, " c"]

    @property
    def predicted(self) -> int:
        """Index of the class with the highest score; the first one in a tie."""
        return int(self.scores.argmax())

    @property
    def tied(self) -> bool:
        """Whether several classes have the highest score."""
        return int((self.scores == self.scores.max()).sum()) > 1


def pool_slide(
    scores: Float[np.ndarray, "n c"], cells: Int64[np.ndarray, "n 2"], smoothing: Sequence[bool] = (False, True)
) -> list[PooledScore]:
    """Pool the scores of one slide's tiles with every pooling method, without and with smoothing.

    Let s(i, c) be the scores of n tiles, sorted in descending order for each class c. The score of class c is:

    - `top1` ... `top100`: the mean of the K highest, (1 / K) * sum of s(i, c) over i = 1 ... K. The K tiles of one
      class need not be those of another. MI-Zero's top-K pooling is the same, up to the factor 1 / K in its code,
      which changes no prediction. If K exceeds n, all tiles are averaged, and `pooled` is n.
    - `mean`: the mean over all tiles, MI-Zero's mean pooling.
    - `share`: the fraction of tiles whose highest score is that of class c. If several classes share a tile's highest
      score, the tile counts for the first. With one class the share is 1.

    Sums are computed in double precision and rounded to single precision, so that classes with equal sums are tied. If
    tiles have equal scores, the top-K mean does not depend on which of them are selected.

    Args:
        scores: Score of each class for each tile: probabilities, or cosine similarities to the classes' prompts.
        cells: Row and column of each tile in the slide's grid (`SlideGrid.cells`), for smoothing.
        smoothing: Whether to pool the tiles' own scores (False), smoothed scores (True, see `smooth_scores`), or both.

    Returns:
        One entry per smoothing and pooling, in the order of `smoothing` and `POOLINGS`.

    Raises:
        DataError: There are no tiles or no classes, a score is not finite, or two tiles have the same cell.
    """
    _check(scores)
    pooled = []
    for smoothed in smoothing:
        values = smooth_scores(scores, cells) if smoothed else scores.astype(np.float64)
        pooled += _pool(values, smoothed)
    return pooled


def smooth_scores(scores: Float[np.ndarray, "n c"], cells: Int64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n c"]:
    """Replace the scores of each tile with the mean over all tiles in the 3 x 3 cells around it.

    MI-Zero instead averages over the 8 nearest tiles, which are farther away at the edge of the tissue. Here, a tile
    without neighbours keeps its scores. This takes O(n log n) time.

    Args:
        cells: Row and column of each tile in the slide's grid.

    Raises:
        DataError: Two tiles have the same cell.
    """
    width = int(cells[:, 1].max(initial=0)) + 2  # one empty column, so that no row continues in the next
    keys = cells[:, 0] * width + cells[:, 1]
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    if (ordered[1:] == ordered[:-1]).any():
        raise DataError(
            "two tiles lie in the same cell of the slide's grid", fix="score the tiles of one grid at a time"
        )
    total = np.zeros(scores.shape, dtype=np.float64)
    count = np.zeros(len(scores), dtype=np.float64)
    for row, column in _NEIGHBOURHOOD:
        neighbour_keys = keys + row * width + column
        index = np.searchsorted(ordered, neighbour_keys).clip(max=len(ordered) - 1)
        present = ordered[index] == neighbour_keys
        total[present] += scores[order[index[present]]]
        count += present
    return total / count[:, None]


def slide_table(pooled: Mapping[str, Sequence[PooledScore]], classes: Sequence[str]) -> pd.DataFrame:
    """Tabulate the scores of slides, one row per slide, pooling and smoothing.

    Columns: `slide`, `tiles`, `pooling`, `smoothed`, `pooled` (see `PooledScore`), `score_<class>` for each class,
    `predicted` (name of the class with the highest score) and `tied` (whether several classes have it).

    Args:
        pooled: Scores of each slide, keyed by slide name.
        classes: Class names, in the order of the scores.

    Raises:
        DataError: A slide does not have one score per class.
    """
    rows = []
    for slide, of_slide in pooled.items():
        for entry in of_slide:
            if len(entry.scores) != len(classes):
                raise DataError(
                    f"{counted(len(entry.scores), 'score')} for {counted(len(classes), 'class', 'classes')}",
                    where=slide,
                    fix="score the slide with the same classifier as the others",
                )
            scores = {SCORE_PREFIX + name: score for name, score in zip(classes, entry.scores.tolist(), strict=True)}
            rows.append(
                {
                    "slide": slide,
                    "tiles": entry.tiles,
                    "pooling": entry.pooling,
                    "smoothed": entry.smoothed,
                    "pooled": entry.pooled,
                    **scores,
                    "predicted": classes[entry.predicted],
                    "tied": entry.tied,
                }
            )
    score_names = [SCORE_PREFIX + name for name in classes]
    columns = ["slide", "tiles", "pooling", "smoothed", "pooled", *score_names, "predicted", "tied"]
    return pd.DataFrame(rows, columns=columns)


def _pool(values: Float64[np.ndarray, "n c"], smoothed: bool) -> list[PooledScore]:
    n = len(values)
    largest_k = min(n, max(TOP_K))
    highest = np.sort(np.partition(values, n - largest_k, axis=0)[n - largest_k :], axis=0)[::-1]
    best = np.bincount(values.argmax(axis=1), minlength=values.shape[1])
    pooled = {f"top{k}": (min(k, n), highest[: min(k, n)].mean(axis=0)) for k in TOP_K}
    pooled |= {"mean": (n, values.mean(axis=0)), "share": (n, best / n)}
    return [
        PooledScore(name, smoothed, n, count, scores.astype(np.float32)) for name, (count, scores) in pooled.items()
    ]


def _check(scores: Float[np.ndarray, "n c"]) -> None:
    n, n_classes = scores.shape
    if not n or not n_classes:
        missing = "tiles" if not n else "classes"
        raise DataError(f"no {missing} to score", fix="drop the slide, and list it as not scored")
    invalid = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(invalid):
        raise DataError(
            f"{counted(len(invalid), 'tile has', 'tiles have')} scores that are not finite: rows "
            f"{shortlist(invalid.tolist())}",
            fix="check the classifier; NaN means that its training diverged",
        )
