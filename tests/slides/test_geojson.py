"""Contours from GeoJSON, their masks and outlines, and predictions written for QuPath."""

import errno
import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qupath_schema import features_for_qupath

from clipit.errors import ArtifactError, DataError
from clipit.slides.geojson import read_contours
from clipit.slides.grid import SlideGrid
from clipit.slides.heat_map import heat_map
from clipit.slides.polygons import Polygon, rasterise, trace
from clipit.slides.qupath import write_polygons_geojson, write_regions_geojson, write_tiles_geojson

SQUARE = [[100, 200], [300, 200], [300, 400], [100, 400], [100, 200]]
HOLE = [[150, 250], [200, 250], [200, 300], [150, 300], [150, 250]]
TRIANGLE = [[500.5, 500], [700, 500], [600, 650], [500.5, 500]]


def feature(geometry: Any, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def collection(*features: Any, **members: Any) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features), **members}


def polygon(*rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def contours(folder: Path, value: Any, width: int = 1000, height: int = 800) -> list[Polygon]:
    path = folder / "contours.geojson"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return read_contours(path, width, height)


def make_grid(
    x: list[int], y: list[int], edge: int = 100, step: float = 100.0, size: tuple[int, int] = (1000, 800)
) -> SlideGrid:
    place = [np.array(values, dtype=np.int32) for values in (x, y)]
    return SlideGrid("case 1", *size, 0.5, edge, step, *place, np.ones(len(x), dtype=np.float32))


def test_contours_of_qupath_and_trident(tmp_path: Path) -> None:
    tumour = {"name": "Tumor", "color": [200, 0, 0]}
    of_qupath = feature(polygon(SQUARE, HOLE), objectType="annotation", classification=tumour)
    of_trident = collection(
        feature(polygon(SQUARE, HOLE), tissue_id=0),
        crs={"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}},
    )
    for value in (collection(of_qupath), [of_qupath], of_qupath, of_trident, polygon(SQUARE, HOLE)):
        (parsed,) = contours(tmp_path, value)
        np.testing.assert_array_equal(parsed.exterior, SQUARE)
        np.testing.assert_array_equal(parsed.holes[0], HOLE)
        assert parsed.area == 200 * 200 - 50 * 50
    assert contours(tmp_path, [of_qupath])[0].name == "Tumor"
    assert contours(tmp_path, of_trident)[0].name == ""


@pytest.mark.parametrize(
    "marks",
    [
        {"properties": {"objectType": "annotation"}},
        {"properties": {"object_type": "annotation"}},
        {"id": "PathAnnotationObject", "properties": {"isLocked": False}},
    ],
)
def test_contours_of_all_versions_of_qupath_are_shifted(tmp_path: Path, marks: dict[str, Any]) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps([{"type": "Feature", "geometry": polygon(SQUARE), **marks}]), encoding="utf-8")
    (parsed,) = read_contours(path, 500, 500, origin=(10, 20))
    np.testing.assert_array_equal(parsed.exterior, np.add(SQUARE, (10, 20)))


def test_multipolygons_and_geometry_collections(tmp_path: Path) -> None:
    multipolygon = {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE], [TRIANGLE]]}
    nested = {"type": "GeometryCollection", "geometries": [multipolygon, polygon(TRIANGLE)]}
    parsed = contours(tmp_path, collection(feature(nested, name="a part")))
    assert [(len(one.exterior), len(one.holes), one.name) for one in parsed] == [
        (5, 1, "a part"), (4, 0, "a part"), (4, 0, "a part"),
    ]  # fmt: skip


def test_open_rings_are_closed_and_third_coordinates_dropped(tmp_path: Path) -> None:
    (parsed,) = contours(tmp_path, polygon([[*corner, 7.0] for corner in SQUARE[:-1]]))
    np.testing.assert_array_equal(parsed.exterior, SQUARE)


def test_points_and_degenerate_rings_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flat, point = polygon([[1, 1], [5, 5], [1, 1]]), {"type": "Point", "coordinates": [3, 4]}
    with caplog.at_level(logging.INFO):
        parsed = contours(tmp_path, [feature(point), feature(None), flat, feature(polygon(SQUARE, [[1, 1], [2, 2]]))])
    assert len(parsed) == 1 and parsed[0].holes == ()
    (line,) = caplog.messages
    assert "1 x Point" in line and "1 x empty geometry" in line and "1 x hole" in line and "1 x ring" in line


def test_missing_cores_of_a_tissue_microarray_are_dropped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    missing = (False, "False", True, "True")
    cores = [feature(polygon(SQUARE), name=f"A-{n}", isMissing=value) for n, value in enumerate(missing)]
    with caplog.at_level(logging.INFO):
        parsed = contours(tmp_path, cores)
    assert [core.name for core in parsed] == ["A-0", "A-1"]
    assert "2 x TMA core marked as missing" in caplog.messages[0]


def test_polygons_on_other_focal_planes_are_read_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    planes = (
        {"c": -1, "z": 0, "t": 0},
        {"c": -1, "z": 2, "t": 0},
        {"c": -1, "z": 2, "t": 0},
        {"c": -1, "z": 0, "t": 3},
    )
    drawn = [feature(polygon(SQUARE) | {"plane": plane}) for plane in planes]
    for value in (drawn, collection(*drawn)):
        caplog.clear()
        assert len(contours(tmp_path, value)) == 4
        assert "3 geometries lie on a plane other than the first in QuPath (t 3: 1, z 2: 2)" in caplog.text
    contours(tmp_path, drawn[1])
    assert "1 geometry lies on a plane other" in caplog.text


INVALID = {
    "not JSON": ("<xml/>", "not JSON"),
    "not JSON, too deep": ("[" * 100_000, "not JSON"),
    "empty": ("", "not JSON"),
    "a list of numbers": ([1, 2], "JSON, but not GeoJSON: int"),
    "another object": ({"tissue": [SQUARE]}, "JSON, but not GeoJSON: type None"),
    "features missing": ({"type": "FeatureCollection"}, "no list of features"),
    "strings as coordinates": (polygon([["a", "b"]] * 4), "not a list of coordinate pairs"),
    "numbers as coordinates": (polygon([1, 2, 3, 4]), "not a list of coordinate pairs"),
    "a string as a corner": (polygon([*SQUARE[:2], "300", *SQUARE[3:]]), "not a list of coordinate pairs"),
    "strings as numbers": (polygon([[str(x), y] for x, y in SQUARE]), "not a list of coordinate pairs"),
    "a boolean as a number": (polygon([*SQUARE[:2], [True, 400], *SQUARE[3:]]), "not a list of coordinate pairs"),
    "a hole outside the slide": (polygon(SQUARE, [[9000, 250], *HOLE[1:4], [9000, 250]]), "file of a different slide"),
    "not finite": ('{"type": "Polygon", "coordinates": [[[1, NaN], [2, 3], [5, 9], [1, 2]]]}', "not finite"),
    "no features": (collection(), "no polygon"),
    "points only": (feature({"type": "Point", "coordinates": [3, 4]}), "no polygon"),
    "relative coordinates": (polygon([[0.1, 0.1], [0.9, 0.1], [0.9, 1.0], [0.1, 0.1]]), r"at most 1(.|\n)*1000 x 800"),
    "a different slide": (polygon([[100, 100], [1011, 100], [900, 300], [100, 100]]), "file of a different slide"),
    "left of the slide": (polygon([[-11, 100], [900, 100], [900, 300], [-11, 100]]), "file of a different slide"),
    "degrees": (
        collection(feature(polygon([[7.6, 45.0], [7.7, 45.0], [7.7, 45.1], [7.6, 45.0]])), crs={"name": "OGC:CRS84"}),
        "in degrees",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_contours_are_errors(tmp_path: Path, case: str) -> None:
    value, message = INVALID[case]
    with pytest.raises(DataError, match=message) as error:
        contours(tmp_path, value)
    assert "contours.geojson" in str(error.value)


def test_unreadable_contour_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such contour file(?s:.*) is empty"):
        read_contours(tmp_path / "missing.geojson", 10, 10)
    (tmp_path / "bytes.geojson").write_bytes(b"\x89PNG\xff")
    with pytest.raises(DataError, match="not JSON"):
        read_contours(tmp_path / "bytes.geojson", 10, 10)


def test_contours_within_one_percent_of_the_border_are_accepted(tmp_path: Path) -> None:
    (parsed,) = contours(tmp_path, polygon([[-9, 0], [1009, 0], [1009, 807], [-9, 0]]))
    assert rasterise([parsed], (8, 10), 100.0).shape == (8, 10)


def test_contours_confined_to_the_upper_left_corner_trigger_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    contours(tmp_path, polygon(SQUARE), 40_000, 30_000)
    assert "upper left 2%" in caplog.text
    caplog.clear()
    contours(tmp_path, polygon(SQUARE))
    assert caplog.text == ""


def test_a_pixel_is_set_if_its_centre_is_inside() -> None:
    ring = np.array([[0, 0], [25, 0], [25, 10], [0, 10], [0, 0]], dtype=float)
    np.testing.assert_array_equal(rasterise([Polygon(ring)], (2, 4), 10.0), [[1, 1, 0, 0], [0, 0, 0, 0]])
    just_beyond = ring + np.array([0.001, 0])
    np.testing.assert_array_equal(rasterise([Polygon(just_beyond)], (2, 4), 10.0), [[1, 1, 1, 0], [0, 0, 0, 0]])


def test_a_centre_on_a_shared_border_belongs_to_exactly_one_polygon() -> None:
    corners = np.array([[5.0, 5.0], [35.0, 15.0], [45.0, 45.0], [15.0, 35.0], [5.0, 5.0]])
    middle = np.array([25.0, 25.0])
    parts = [Polygon(np.array([a, b, middle, a])) for a, b in pairwise(corners)]
    masks = [rasterise([part], (5, 5), 10.0) for part in parts]
    np.testing.assert_array_equal(sum(mask.astype(int) for mask in masks), rasterise([Polygon(corners)], (5, 5), 10.0))


def test_rasterise_matches_matplotlib() -> None:
    from matplotlib.path import Path as Outline

    rng = np.random.default_rng(0)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 40))
    star = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(80, 330, (40, 1)) + [310, 260]
    star = np.concatenate([star, star[:1]])
    hole = np.array([[250.3, 200.1], [380.7, 240.2], [300.9, 310.4], [250.3, 200.1]])
    shape, downsample = (37, 45), 13.7
    y, x = (np.indices(shape).reshape(2, -1) + 0.5) * downsample
    centres = np.stack([x, y], axis=1)
    expected = Outline(star).contains_points(centres) & ~Outline(hole).contains_points(centres)
    np.testing.assert_array_equal(rasterise([Polygon(star, (hole,))], shape, downsample), expected.reshape(shape))
    assert 100 < expected.sum() < 1500


def test_holes_do_not_affect_other_polygons() -> None:
    square = Polygon(np.array(SQUARE, dtype=float), (np.array(HOLE, dtype=float),))
    filling = Polygon(np.array(HOLE, dtype=float))
    assert rasterise([square], (80, 100), 10.0).sum() == 400 - 25
    assert rasterise([square, filling], (80, 100), 10.0).sum() == 400


def is_simple(ring: np.ndarray) -> bool:
    corners = [tuple(corner) for corner in ring[:-1].tolist()]
    return len(set(corners)) == len(corners)


@pytest.mark.parametrize("seed", range(4))
def test_traced_outlines_reproduce_the_mask_with_simple_rings(seed: int) -> None:
    mask = np.random.default_rng(seed).random((23, 31)) < (0.3, 0.5, 0.6, 0.8)[seed]
    outlines = trace(mask, 3.5)
    np.testing.assert_array_equal(rasterise(outlines, mask.shape, 3.5), mask)
    assert sum(outline.area for outline in outlines) == pytest.approx(mask.sum() * 3.5**2)
    rings = [ring for outline in outlines for ring in (outline.exterior, *outline.holes)]
    assert all(is_simple(ring) and (ring[0] == ring[-1]).all() for ring in rings)


def test_holes_belong_to_the_outline_around_them() -> None:
    mask = np.zeros((9, 9), dtype=bool)
    mask[1:8, 1:8] = True
    mask[2:7, 2:7] = False
    mask[4, 4] = True  # an island in the hole
    ring, island = trace(mask)
    assert [len(ring.holes), len(island.holes)] == [1, 0]
    assert [ring.area, island.area] == [24, 1]
    np.testing.assert_array_equal(island.exterior, [[5, 4], [5, 5], [4, 5], [4, 4], [5, 4]])
    assert trace(np.zeros((3, 3), dtype=bool)) == []


CLASSES = ["tumour", 'fat "100%"\n</script>', "stroma"]
COLOURS = ["#0072B2", "#D55E00", "#009E73"]


def test_tiles_are_written_with_class_and_probabilities(tmp_path: Path) -> None:
    grid = make_grid([0, 100, 900], [0, 0, 700])
    scores = np.array([[0.7, 0.2, 0.1], [1e-7, 0.9, 0.1], [0.3, 0.3, 0.4]], dtype=np.float32)
    write_tiles_geojson(tmp_path / "tiles.geojson", grid, CLASSES, scores, COLOURS)

    features = features_for_qupath(tmp_path / "tiles.geojson")
    assert [one["properties"]["name"] for one in features] == grid.ids
    assert [one["properties"]["objectType"] for one in features] == ["tile"] * 3
    assert features[1]["properties"]["classification"] == {"name": 'fat "100%" </script>', "color": [213, 94, 0]}
    for one, values in zip(features, scores, strict=True):
        measurements = one["properties"]["measurements"]
        assert list(measurements) == [f"probability: {name}" for name in CLASSES]
        np.testing.assert_allclose(list(measurements.values()), values, rtol=1e-5)
    parsed = read_contours(tmp_path / "tiles.geojson", grid.width, grid.height)
    assert [one.exterior[0].tolist() for one in parsed] == [[0, 0], [100, 0], [900, 700]]
    assert {one.area for one in parsed} == {100.0 * 100.0}
    first = (tmp_path / "tiles.geojson").read_bytes()
    write_tiles_geojson(tmp_path / "tiles.geojson", grid, CLASSES, scores, COLOURS)
    assert (tmp_path / "tiles.geojson").read_bytes() == first, "ids are deterministic"


def test_tiles_are_written_completely_in_several_blocks(tmp_path: Path) -> None:
    x, y = (values.ravel().tolist() for values in np.meshgrid(np.arange(70) * 10, np.arange(80) * 10))
    grid, scores = make_grid(x, y, 10, 10.0), np.random.default_rng(0).dirichlet([1, 1, 1], 5600)
    write_tiles_geojson(tmp_path / "tiles.geojson", grid, CLASSES, scores, COLOURS)
    features = features_for_qupath(tmp_path / "tiles.geojson")
    assert [one["properties"]["name"] for one in features] == grid.ids


def test_regions_are_connected_cells_of_a_class(tmp_path: Path) -> None:
    columns, rows = np.meshgrid(np.arange(4), np.arange(3))
    x, y = (columns.ravel() * 100).tolist(), (rows.ravel() * 100).tolist()
    best = np.array([[0, 0, 0, 2], [0, 1, 0, 2], [0, 0, 0, 0]]).ravel()
    scores = np.eye(3)[best] * 0.4 + 0.2
    grid = make_grid(x, y, size=(380, 300))  # the last column of tiles reaches beyond the slide
    write_regions_geojson(tmp_path / "regions.geojson", grid, CLASSES, scores, COLOURS)

    tumour, fat, stroma = (one for one in features_for_qupath(tmp_path / "regions.geojson"))
    assert {one["properties"]["objectType"] for one in (tumour, fat, stroma)} == {"annotation"}
    assert [len(one["geometry"]["coordinates"]) for one in (tumour, fat, stroma)] == [2, 1, 1]
    assert stroma["properties"]["classification"] == {"name": "stroma", "color": [0, 158, 115]}
    assert tumour["properties"]["measurements"] == {
        "area um^2": (8 * 10_000 + 80 * 100) / 4, "cells": 9, "mean probability": 0.6,
    }  # fmt: skip
    assert np.max(stroma["geometry"]["coordinates"]) == 380
    outlines = read_contours(tmp_path / "regions.geojson", 380, 300)
    assert [one.name for one in outlines] == ["tumour", 'fat "100%" </script>', "stroma"]
    np.testing.assert_array_equal(rasterise(outlines[:1], (3, 4), 100.0), best.reshape(3, 4) == 0)


def test_regions_of_overlapping_tiles_use_mean_scores(tmp_path: Path) -> None:
    grid = make_grid([0, 50, 100], [0, 0, 0], edge=100, step=50.0, size=(200, 100))
    scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    means = heat_map(grid, scores, grid.step)
    np.testing.assert_allclose(means[0], [[0.9, 0.65, 0.3, 0.2]] * 2, rtol=1e-6)
    write_regions_geojson(tmp_path / "regions.geojson", grid, CLASSES[:2], scores, COLOURS[:2])
    first, second = features_for_qupath(tmp_path / "regions.geojson")
    assert np.max(first["geometry"]["coordinates"], axis=(0, 1)).tolist() == [100, 100]
    assert second["properties"]["measurements"]["mean probability"] == pytest.approx(0.75)


def test_tissue_polygons_are_written_and_read_back(tmp_path: Path) -> None:
    mask = np.random.default_rng(1).random((16, 20)) < 0.6
    outlines = trace(mask, 40.5)
    write_polygons_geojson(tmp_path / "tissue.geojson", "case 1", outlines, "Tissue", "#000000")
    assert len(features_for_qupath(tmp_path / "tissue.geojson")) == len(outlines)
    parsed = read_contours(tmp_path / "tissue.geojson", 810, 648)
    np.testing.assert_array_equal(rasterise(parsed, mask.shape, 40.5), mask)
    assert {one.name for one in parsed} == {"Tissue"}


def test_a_slide_without_tiles_gives_empty_files(tmp_path: Path) -> None:
    grid, scores = make_grid([], []), np.zeros((0, 3))
    for write in (write_tiles_geojson, write_regions_geojson):
        write(tmp_path / "empty.geojson", grid, CLASSES, scores, COLOURS)
        assert features_for_qupath(tmp_path / "empty.geojson") == []


def test_non_finite_scores_are_an_error(tmp_path: Path) -> None:
    grid, scores = make_grid([0, 100], [0, 0]), np.array([[0.5, 0.5, 0.0], [np.nan, 0.5, 0.5]])
    for write in (write_tiles_geojson, write_regions_geojson):
        with pytest.raises(DataError, match=r"1 tile has scores that are not finite numbers(.|\n)*case 1@100,0,100"):
            write(tmp_path / "out.geojson", grid, CLASSES, scores, COLOURS)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_and_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_disk_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("clipit.slides.qupath.uuid.uuid5", raise_disk_full)
    with pytest.raises(ArtifactError, match="cannot write: No space left"):
        write_tiles_geojson(tmp_path / "t.geojson", make_grid([0], [0]), CLASSES, np.ones((1, 3)) / 3, COLOURS)
    assert not list(tmp_path.iterdir())
