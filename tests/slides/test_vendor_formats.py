"""Synthetic slides in vendor formats: pixels, resolution, scanned area, and folders of mixed formats."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from slide_files import levels_of, picture
from vendor_slides import ORIGIN, SCANNED, write_bif, write_mrxs, write_ndpi, write_philips, write_scn

import clipit
from clipit.slides.geojson import read_polygons
from clipit.slides.opening import open_slide

WRITERS: dict[str, Callable[[Path, np.ndarray], Path]] = {
    "scn": write_scn,
    "ndpi": write_ndpi,
    "mrxs": write_mrxs,
    "bif": write_bif,
    "tiff": write_philips,
}


@pytest.mark.parametrize(
    ("suffix", "vendor", "place", "origin", "size", "tolerance"),
    [
        ("scn", "leica", ORIGIN, ORIGIN, SCANNED, 0),
        ("ndpi", "hamamatsu", (0, 0), (0, 0), (600, 400), 5),
        ("bif", "ventana", (0, 0), (0, 0), (600, 400), 0),
        ("tiff", "philips", (0, 0), (0, 0), (640, 448), 0),  # padded to whole tiles
        ("mrxs", "mirax", (0, 0), (100, 0), (600, 400), 0),  # the first image with tissue starts at x = 100
    ],
)
def test_pixels_resolution_and_scanned_area(
    suffix: str, vendor: str, place: tuple[int, int], origin: tuple[int, int], size: tuple[int, int], tolerance: int,
    tmp_path: Path,
) -> None:  # fmt: skip
    slide = open_slide(WRITERS[suffix](tmp_path / f"a.{suffix}", picture()))
    assert (slide.format, slide.mpp, slide.magnification, slide.origin) == (vendor, 0.5, 20, origin)
    assert (slide.levels[0].width, slide.levels[0].height) == size
    pixels = np.asarray(slide.read_region(*place, 0, 600, 400)).astype(int)
    assert np.abs(pixels - picture()).max() <= tolerance
    for level, expected in enumerate(levels_of(picture(), len(slide.levels))[1:], 1):
        assert slide.levels[level].downsample == 2**level
        assert slide.levels[level].width == size[0] >> level
        smaller = np.asarray(slide.read_region(*place, level, expected.shape[1], expected.shape[0])).astype(int)
        assert np.abs(smaller - expected).max() <= tolerance
    beyond = np.asarray(slide.read_region(size[0] - 20, size[1] - 20, 0, 60, 60))
    assert (beyond == 255).all()
    slide.close()


def test_all_formats_give_the_same_tiles_and_contours(tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    for suffix, write in WRITERS.items():
        write(folder / f"of_{suffix}.{suffix}", picture())
    result = clipit.tile_slides(folder, tmp_path / "out", tile_mpp=0.5, tile_pixels=20)
    slides = result.slides.set_index("slide")
    assert slides["status"].to_dict() == {f"of_{suffix}": "ok" for suffix in sorted(WRITERS)}
    grids = {
        name: pd.read_parquet(tmp_path / "out/slides" / name / "grid.parquet")[["x", "y"]].to_numpy()
        for name in slides.index
    }
    assert np.array_equal(grids["of_mrxs"], grids["of_ndpi"]) and len(grids["of_ndpi"]) == 15 * 12
    for name in ("of_bif", "of_tiff"):
        assert np.array_equal(grids[name], grids["of_ndpi"])
    inside = grids["of_scn"] - ORIGIN
    assert inside.min(axis=0).tolist() >= [80, 60] and inside.max(axis=0).tolist() <= [400, 320]
    left = {}
    for name in slides.index:
        (outline, *others), *_ = read_polygons(tmp_path / "out/slides" / name / "tissue.geojson")
        assert not others
        left[name] = float(outline.exterior[:, 0].min())
    assert left["of_ndpi"] == pytest.approx(100, abs=16)
    assert left["of_mrxs"] == pytest.approx(0, abs=16)  # QuPath coordinates start at the scanned area, at x = 100
    assert left["of_scn"] == pytest.approx(100, abs=16)
