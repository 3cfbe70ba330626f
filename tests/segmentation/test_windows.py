"""Windows over images, and their scores stitched to maps in the memory of one row of windows."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipit.errors import ConfigError, DataError
from clipit.models.preprocess import Preprocess
from clipit.runs.tile_scorer import TileScorer
from clipit.segmentation.stitching import WindowGrid, average_strips, fill, stitch
from clipit.segmentation.windows import WindowModel
from clipit.segmentation.zero_shot_methods import map_classes


def by_pixel(grid: WindowGrid, scores: np.ndarray) -> np.ndarray:
    """The mean scores over the windows of each pixel, window by window."""
    sums, counts = np.zeros((scores.shape[1], grid.height, grid.width)), np.zeros((grid.height, grid.width))
    for (left, top), score in zip([c for b in grid.batches(1) for c in b], scores, strict=True):
        inside = np.s_[top : top + grid.edge, left : left + grid.edge]
        sums[(slice(None), *inside)] += score[:, None, None]
        counts[inside] += 1
    return sums / counts


GRIDS = [(17, 13, 5, 2), (17, 13, 5, 5), (17, 13, 5, 4), (9, 23, 9, 3), (6, 6, 6, 1), (12, 8, 4, 3)]


@pytest.mark.parametrize(("width", "height", "edge", "stride"), GRIDS)
def test_stitched_strips_equal_the_mean_over_the_windows_of_each_pixel(
    width: int, height: int, edge: int, stride: int
) -> None:
    grid = WindowGrid(width, height, edge, stride)
    scores = np.random.default_rng(0).random((len(grid.lefts) * len(grid.tops), 3)).astype(np.float32)
    expected = by_pixel(grid, scores)
    for size in (1, 4, 1000):
        parts = [scores[i : i + size] for i in range(0, len(scores), size)]
        assert [len(batch) for batch in grid.batches(size)] == [len(part) for part in parts]
        np.testing.assert_allclose(fill(stitch(grid, parts), 3, height, width), expected, rtol=1e-5)


def test_stitching_asks_for_a_row_of_windows_when_its_strip_is_due() -> None:
    grid = WindowGrid(40, 1000, 8, 4)
    asked = 0

    def scores() -> Iterator[np.ndarray]:
        nonlocal asked
        for batch in grid.batches(len(grid.lefts)):
            asked += 1
            yield np.ones((len(batch), 2), np.float32)

    for number, strip in enumerate(stitch(grid, scores())):
        assert strip.top == 4 * number and asked <= number + 1  # rows below the strip are not classified yet
        assert strip.values.shape == (2, 40)
    assert asked == len(grid.tops) == 249


def test_maps_of_several_scales_are_averaged() -> None:
    rng = np.random.default_rng(0)
    grids = [WindowGrid(20, 30, 6, 3), WindowGrid(20, 30, 15, 4)]
    scores = [rng.random((len(g.lefts) * len(g.tops), 2)).astype(np.float32) for g in grids]
    pairs = list(zip(grids, scores, strict=True))
    expected = np.mean([by_pixel(*pair) for pair in pairs], axis=0)
    found = fill(average_strips([stitch(grid, [rows]) for grid, rows in pairs]), 2, 30, 20)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


class Seen(list[Any]):
    """Pixels that a model was given."""


def model(seen: "Seen | None" = None, mpp: float | None = 2.0, **keys: Any) -> WindowModel:
    """A model with inputs of 8 pixels that says how red its input is."""

    def compute(pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        if seen is not None:
            seen.extend(pixels.numpy())
        red = pixels[:, 0].float().mean(dim=(1, 2)) / 255
        return torch.stack([1 - red, red], dim=1), None

    preprocess = Preprocess(8, 10, "shortest", "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    device = torch.device("cpu")
    scorer = TileScorer(("other", "red"), "classifier", "red", compute, preprocess, device, mpp, None, 1.0, {})
    return WindowModel(scorer, np.eye(2, dtype=np.float32), **keys)


def half_red(width: int = 40, height: int = 24) -> Image.Image:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :, 0] = 255
    return Image.fromarray(pixels)


def test_windows_have_the_field_of_view_of_the_model_whatever_the_resolution_of_the_image() -> None:
    windows = model()
    assert [windows.edge(mpp, 1.0) for mpp in (0.5, 1.0, 2.0)] == [32, 16, 8]
    assert windows.edge(1.0, 0.5) == 8 and windows.edge(100.0, 1.0) == 4
    assert model(mpp=None).edge(float("nan"), 2.0) == 16
    with pytest.raises(DataError, match=r"16 micrometres wide, but the resolution of a tile is unknown"):
        windows.edge(float("nan"), 1.0)
    seen = Seen()
    model(seen, overlap=0.0).probabilities(half_red(), 1.0, (1.0,))  # windows of 16 pixels, shrunk whole to 8
    assert len(seen) == 6 and all(pixels.shape == (3, 8, 8) for pixels in seen)
    assert seen[0].max() == 0 and seen[2][0].min() == 255
    assert seen[1][0].mean() == pytest.approx(255 * 12 / 16, abs=3)  # its last 12 of 16 columns are red


def test_probabilities_follow_the_image_and_smaller_images_are_reflected() -> None:
    found = model(overlap=0.75).probabilities(half_red(), 2.0, (0.5, 1.0))
    assert found.shape == (2, 24, 40) and found.dtype == np.float32
    assert (found[1, :, :12] < 0.01).all() and (found[1, :, 28:] > 0.99).all()
    np.testing.assert_allclose(found.sum(axis=0), 1, rtol=1e-5)
    tiny = model().probabilities(half_red(6, 3), 1.0, (1.0,))
    assert tiny.shape == (2, 3, 6) and (np.diff(tiny[1]) == 0).all() and 0 < tiny[1, 0, 0] < 1


def test_windows_of_one_class_are_exact_by_majority() -> None:
    mask = np.zeros((24, 40), np.int16)
    mask[:, 20:] = 1
    mask[0, 0] = -1
    exact = (
        model(overlap=0.0).majority(mask, 4.0, (1.0,)).argmax(axis=0)
    )  # windows of 4 pixels, none of which crosses the border
    assert (exact[mask >= 0] == mask[mask >= 0]).all()
    coarse = model(overlap=0.0).majority(mask, 1.0, (1.0,)).argmax(axis=0)
    assert (coarse[:, :16] == 0).all() and (coarse[:, 16:] == 1).all()


def test_probabilities_of_classes_without_a_place_in_the_masks_are_dropped() -> None:
    matrix = map_classes(["a", "b", "c"], ["x", "y"], {"a": "x", "c": "y"}, "model")
    assert matrix.tolist() == [[1, 0], [0, 0], [0, 1]]
    assert map_classes(["y", "z", "x"], ["x", "y"], {}, "model").tolist() == [[0, 1], [0, 0], [1, 0]]
    # Entries for the classes of a different model do not count.
    assert map_classes(["y", "x"], ["x", "y"], {"a": "x", "c": "y"}, "model").tolist() == [[0, 1], [1, 0]]
    assert map_classes(["a", "c"], ["x", "y"], {"a": "x", "c": "y", "d": "x"}, "model").tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ConfigError, match="no model class corresponds to y"):
        map_classes(["a", "b"], ["x", "y"], {"a": "x"}, "model")


def test_batches_do_not_change_the_map() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (30, 50, 3)).astype(np.uint8))
    sizes: Sequence[int] = (1, 7, 64)
    maps = [model(batch_size=size).probabilities(image, 2.0, (1.0,)) for size in sizes]
    np.testing.assert_allclose(maps[0], maps[1], rtol=1e-6)
    np.testing.assert_allclose(maps[0], maps[2], rtol=1e-6)
