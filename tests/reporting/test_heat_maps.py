"""Test heat maps as arrays, as overlays on the overview, and as OME-TIFF files."""

import errno
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipit.errors import ArtifactError
from clipit.reporting.heat_map_tiff import write_heat_map_tiff
from clipit.reporting.heat_maps import (
    best_class_colours,
    class_colours,
    scale_bar,
    write_overlays,
)
from clipit.reporting.plots import COLOURS
from clipit.slides.grid import SlideGrid
from clipit.slides.heat_map import heat_map


def grid_of(x: list[int], y: list[int], edge: int, step: float, size: tuple[int, int]) -> SlideGrid:
    place = [np.array(values, dtype=np.int32) for values in (x, y)]
    return SlideGrid("case 1", *size, 0.5, edge, step, *place, np.ones(len(x), dtype=np.float32))


def full_grid(columns: int, rows: int, edge: int = 100) -> SlideGrid:
    x, y = np.meshgrid(np.arange(columns) * edge, np.arange(rows) * edge)
    return grid_of(x.ravel().tolist(), y.ravel().tolist(), edge, float(edge), (columns * edge, rows * edge))


def test_a_map_without_overlap_has_the_score_of_each_tile() -> None:
    grid = grid_of([0, 20], [0, 10], 10, 10.0, (35, 25))
    means = heat_map(grid, np.array([[0.25, 0.75], [1.0, 0.0]]), 5.0)
    expected = np.full((5, 7), np.nan)
    expected[:2, :2], expected[2:4, 4:6] = 0.25, 1.0
    np.testing.assert_array_equal(means[0], expected)
    np.testing.assert_array_equal(means[1], 1 - expected)
    assert means.dtype == np.float32


def test_averages_of_overlapping_tiles_match_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 90, (60, 2))
    grid = grid_of(corners[:, 0].tolist(), corners[:, 1].tolist(), 23, 10.0, (100, 110))
    scores, downsample = rng.random((60, 2)), 7.3
    means = heat_map(grid, scores, downsample)
    assert means.shape == (2, 16, 14)
    for (row, column), value in np.ndenumerate(means[1]):
        x, y = (column + 0.5) * downsample, (row + 0.5) * downsample
        covers = (corners[:, 0] <= x) & (x < corners[:, 0] + 23) & (corners[:, 1] <= y) & (y < corners[:, 1] + 23)
        if covers.any():
            assert value == pytest.approx(scores[covers, 1].mean(), rel=1e-5)
        else:
            assert np.isnan(value)


def test_rounded_corners_leave_no_gap_between_tiles() -> None:
    step = 22.4  # the edge of a tile is rounded to 22 pixels
    x = np.rint(np.arange(40) * step).astype(int).tolist()
    grid = grid_of(x, [0] * 40, 22, step, (int(40 * step), 22))
    assert not np.isnan(heat_map(grid, np.ones((40, 1)), 1.0)).any()
    np.testing.assert_array_equal(heat_map(grid, np.arange(40.0)[:, None], step)[0], [np.arange(40)])
    with pytest.raises(ValueError, match="lose tiles"):
        heat_map(grid, np.ones((40, 1)), 23.0)


def test_the_map_is_transparent_outside_tiles() -> None:
    means = np.array([[[0.0, np.nan]], [[1.0, np.nan]]], dtype=np.float32)
    assert best_class_colours(means, ["#010203", "#0a0b0c"])[0].tolist() == [[10, 11, 12, 255], [0, 0, 0, 0]]


def test_class_colours_start_with_the_plot_palette_and_are_unique() -> None:
    colours = class_colours(30)
    assert colours[:6] == [colour.lower() for colour in COLOURS[:6]]
    assert len(set(colours)) == 30 and class_colours(31)[30] == colours[0]
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours)


@pytest.mark.parametrize(("width", "length"), [(10_000, 2_000), (9_999, 1_000), (26_000, 5_000), (48.0, 5), (4.9, 0.5)])
def test_the_scale_bar_is_a_round_length_up_to_a_fifth_of_the_width(width: float, length: float) -> None:
    assert scale_bar(float(width)) == pytest.approx(length)


def test_overlays_show_the_overview_and_the_map(tmp_path: Path) -> None:
    grid = full_grid(4, 3)
    scores = np.tile([1.0, 0.0], (12, 1))
    overview = Image.new("RGB", (400, 300), "white")
    (tmp_path / ".attention.png.99999999.tmp").touch()  # left by a killed process
    paths = write_overlays(tmp_path, overview, grid, ["tumour", "a/b <c>"], scores, ["#ff0000", "#00ff00"])
    assert {name: path.name for name, path in paths.items()} == {
        "": "classes.png", "tumour": "00_tumour.png", "a/b <c>": "01_a_b_c.png",
    }  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths.values())
    centre_colours = {}
    for name, path in paths.items():
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        centre_colours[name] = pixels[pixels.shape[0] // 2, pixels.shape[1] // 3].tolist()
    assert centre_colours[""] == pytest.approx([255, 115, 115], abs=2), "should be red over white"
    assert centre_colours["tumour"][2] < 140 < centre_colours["tumour"][0], "should be yellow, the maximum of the scale"
    assert centre_colours["a/b <c>"][1] < 140 < centre_colours["a/b <c>"][2], (
        "should be violet, the minimum of the scale"
    )


@pytest.fixture(scope="module")
def tiff(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SlideGrid, np.ndarray]:
    pytest.importorskip("tifffile")
    grid = full_grid(601, 300, 10)
    scores = np.random.default_rng(0).random((len(grid), 3)).astype(np.float32)
    path = tmp_path_factory.mktemp("tiff") / "map.ome.tif"
    write_heat_map_tiff(path, grid, ["tumour", "<stroma & fat>", "débris"], scores)
    return path, grid, scores


def test_the_tiff_has_a_channel_per_class_and_pyramid_levels(tiff: tuple[Path, SlideGrid, np.ndarray]) -> None:
    import tifffile

    path, _, scores = tiff
    with tifffile.TiffFile(path) as file:
        (series,) = file.series
        assert file.is_ome and series.axes == "CYX"
        assert [level.shape for level in series.levels] == [(3, 300, 601), (3, 150, 301), (3, 75, 151)]
        assert len(file.pages) == 3 and len(file.pages[0].subifds) == 2 and file.pages[0].is_tiled
        full, half = series.levels[0].asarray(), series.levels[1].asarray()
    np.testing.assert_array_equal(full, scores.T.reshape(3, 300, 601))
    np.testing.assert_allclose(half[:, 0, 0], full[:, :2, :2].mean(axis=(1, 2)), rtol=1e-6)
    np.testing.assert_allclose(half[:, 0, -1], full[:, :2, -1].mean(axis=1), rtol=1e-6)


def test_the_tiff_records_its_pixel_size(tiff: tuple[Path, SlideGrid, np.ndarray]) -> None:
    import xml.etree.ElementTree as ET

    import tifffile

    path, grid, _ = tiff
    with tifffile.TiffFile(path) as file:
        root = ET.fromstring(file.ome_metadata)
        numerator, denominator = file.pages[0].tags["XResolution"].value
    pixels = next(element for element in root.iter() if element.tag.endswith("Pixels"))
    assert float(pixels.attrib["PhysicalSizeX"]) == float(pixels.attrib["PhysicalSizeY"]) == 10 * grid.mpp
    assert pixels.attrib["PhysicalSizeXUnit"] == "\u00b5m" and pixels.attrib["Type"] == "float"
    channels = [element.attrib["Name"] for element in root.iter() if element.tag.endswith("Channel")]
    assert channels == ["tumour", "<stroma & fat>", "débris"]
    assert 1e4 / (numerator / denominator) == pytest.approx(10 * grid.mpp, rel=1e-6)


def test_writing_a_map_twice_gives_equal_files(tiff: tuple[Path, SlideGrid, np.ndarray], tmp_path: Path) -> None:
    path, grid, scores = tiff
    write_heat_map_tiff(tmp_path / "again.ome.tif", grid, ["tumour", "<stroma & fat>", "débris"], scores)
    assert (tmp_path / "again.ome.tif").read_bytes() == path.read_bytes()


def test_pixels_without_a_tile_are_nan_in_all_levels(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    grid = grid_of([0, 2990], [0, 0], 10, 10.0, (3000, 20))
    write_heat_map_tiff(tmp_path / "map.ome.tif", grid, ["a"], np.array([[0.25], [1.0]]))
    with tifffile.TiffFile(tmp_path / "map.ome.tif") as file:
        full, half = (level.asarray() for level in file.series[0].levels)
    assert np.isnan(full).sum() == full.size - 2
    assert half.reshape(-1)[0] == 0.25 and half.reshape(-1)[-1] == 1.0 and np.isnan(half).sum() == half.size - 2


def test_a_full_disk_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile = pytest.importorskip("tifffile")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    grid = full_grid(2, 2)
    monkeypatch.setattr(tifffile.TiffWriter, "write", full)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(ArtifactError, match="cannot write: No space left"):
        write_heat_map_tiff(tmp_path / "map.ome.tif", grid, ["a"], np.ones((4, 1)))
    with pytest.raises(ArtifactError, match="cannot write: No space left"):
        write_overlays(tmp_path, Image.new("RGB", (20, 20)), grid, ["a"], np.ones((4, 1)))
    assert not list(tmp_path.iterdir())
