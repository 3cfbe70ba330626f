"""Sliding windows over images, and the stitching of their scores with bounded memory."""

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


def mean_scores_by_pixel(grid: WindowGrid, scores: np.ndarray) -> np.ndarray:
    """Reference implementation: mean scores over all windows that contain a pixel."""
    sums, counts = np.zeros((scores.shape[1], grid.height, grid.width)), np.zeros((grid.height, grid.width))
    for (left, top), score in zip([c for b in grid.batches(1) for c in b], scores, strict=True):
        inside = np.s_[top : top + grid.edge, left : left + grid.edge]
        sums[(slice(None), *inside)] += score[:, None, None]
        counts[inside] += 1
    return sums / counts


GRIDS = [(17, 13, 5, 2), (17, 13, 5, 5), (17, 13, 5, 4), (9, 23, 9, 3), (6, 6, 6, 1), (12, 8, 4, 3)]


@pytest.mark.parametrize(("width", "height", "edge", "stride"), GRIDS)
def test_stitched_strips_equal_the_mean_over_windows(width: int, height: int, edge: int, stride: int) -> None:
    grid = WindowGrid(width, height, edge, stride)
    scores = np.random.default_rng(0).random((len(grid.lefts) * len(grid.tops), 3)).astype(np.float32)
    expected = mean_scores_by_pixel(grid, scores)
    for size in (1, 4, 1000):
        parts = [scores[i : i + size] for i in range(0, len(scores), size)]
        assert [len(batch) for batch in grid.batches(size)] == [len(part) for part in parts]
        np.testing.assert_allclose(fill(stitch(grid, parts), 3, height, width), expected, rtol=1e-5)


def test_stitching_requests_rows_of_windows_lazily() -> None:
    grid = WindowGrid(40, 1000, 8, 4)
    requested = 0

    def scores() -> Iterator[np.ndarray]:
        nonlocal requested
        for batch in grid.batches(len(grid.lefts)):
            requested += 1
            yield np.ones((len(batch), 2), np.float32)

    for number, strip in enumerate(stitch(grid, scores())):
        assert strip.top == 4 * number and requested <= number + 1  # rows below the strip are not scored yet
        assert strip.values.shape == (2, 40)
    assert requested == len(grid.tops) == 249


def test_maps_of_several_scales_are_averaged() -> None:
    rng = np.random.default_rng(0)
    grids = [WindowGrid(20, 30, 6, 3), WindowGrid(20, 30, 15, 4)]
    scores = [rng.random((len(g.lefts) * len(g.tops), 2)).astype(np.float32) for g in grids]
    pairs = list(zip(grids, scores, strict=True))
    expected = np.mean([mean_scores_by_pixel(*pair) for pair in pairs], axis=0)
    averaged = fill(average_strips([stitch(grid, [rows]) for grid, rows in pairs]), 2, 30, 20)
    np.testing.assert_allclose(averaged, expected, rtol=1e-5)


class ModelInputs(list[Any]):
    """List of the inputs that a model received."""


def model(inputs: "ModelInputs | None" = None, mpp: float | None = 2.0, **keys: Any) -> WindowModel:
    """A model with inputs of 8 pixels, whose score is the redness of its input."""

    def compute(pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        if inputs is not None:
            inputs.extend(pixels.numpy())
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


def test_windows_have_the_field_of_view_of_the_model_at_any_image_resolution() -> None:
    windows = model()
    assert [windows.edge(mpp, 1.0) for mpp in (0.5, 1.0, 2.0)] == [32, 16, 8]
    assert windows.edge(1.0, 0.5) == 8 and windows.edge(100.0, 1.0) == 4
    assert model(mpp=None).edge(float("nan"), 2.0) == 16
    with pytest.raises(DataError, match=r"16 micrometres wide, but the resolution of a tile is unknown"):
        windows.edge(float("nan"), 1.0)
    inputs = ModelInputs()
    model(inputs, overlap=0.0).probabilities(half_red(), 1.0, (1.0,))  # windows of 16 pixels, resized to 8
    assert len(inputs) == 6 and all(pixels.shape == (3, 8, 8) for pixels in inputs)
    assert inputs[0].max() == 0 and inputs[2][0].min() == 255
    assert inputs[1][0].mean() == pytest.approx(255 * 12 / 16, abs=3)  # 12 of its 16 columns are red


def test_probabilities_of_images_and_of_images_smaller_than_a_window() -> None:
    probabilities = model(overlap=0.75).probabilities(half_red(), 2.0, (0.5, 1.0))
    assert probabilities.shape == (2, 24, 40) and probabilities.dtype == np.float32
    assert (probabilities[1, :, :12] < 0.01).all() and (probabilities[1, :, 28:] > 0.99).all()
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, rtol=1e-5)
    tiny = model().probabilities(half_red(6, 3), 1.0, (1.0,))
    assert tiny.shape == (2, 3, 6) and (np.diff(tiny[1]) == 0).all() and 0 < tiny[1, 0, 0] < 1


def test_majority_is_exact_in_windows_of_a_single_class() -> None:
    mask = np.zeros((24, 40), np.int16)
    mask[:, 20:] = 1
    mask[0, 0] = -1
    exact = model(overlap=0.0).majority(mask, 4.0, (1.0,)).argmax(axis=0)  # no window of 4 pixels crosses the border
    assert (exact[mask >= 0] == mask[mask >= 0]).all()
    coarse = model(overlap=0.0).majority(mask, 1.0, (1.0,)).argmax(axis=0)
    assert (coarse[:, :16] == 0).all() and (coarse[:, 16:] == 1).all()


def test_probabilities_of_classes_without_a_mask_class_are_dropped() -> None:
    matrix = map_classes(["a", "b", "c"], ["x", "y"], {"a": "x", "c": "y"}, "model")
    assert matrix.tolist() == [[1, 0], [0, 0], [0, 1]]
    assert map_classes(["y", "z", "x"], ["x", "y"], {}, "model").tolist() == [[0, 1], [0, 0], [1, 0]]
    # Entries for the classes of a different model are ignored.
    assert map_classes(["y", "x"], ["x", "y"], {"a": "x", "c": "y"}, "model").tolist() == [[0, 1], [1, 0]]
    assert map_classes(["a", "c"], ["x", "y"], {"a": "x", "c": "y", "d": "x"}, "model").tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ConfigError, match="no model class corresponds to y"):
        map_classes(["a", "b"], ["x", "y"], {"a": "x"}, "model")


def test_the_map_does_not_depend_on_the_batch_size() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (30, 50, 3)).astype(np.uint8))
    sizes: Sequence[int] = (1, 7, 64)
    maps = [model(batch_size=size).probabilities(image, 2.0, (1.0,)) for size in sizes]
    np.testing.assert_allclose(maps[0], maps[1], rtol=1e-6)
    np.testing.assert_allclose(maps[0], maps[2], rtol=1e-6)
