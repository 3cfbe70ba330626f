"""Read areas on slides (tissue contours, annotations) from GeoJSON, as written by QuPath, TRIDENT and geopandas."""

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from clipit.errors import DataError, counted, disk_errors, shortlist
from clipit.input_files.nearby_files import similar_names
from clipit.slides.polygons import Polygon

logger = logging.getLogger(__name__)

_WITHOUT_AREA = frozenset({"Point", "MultiPoint", "LineString", "MultiLineString"})
_DEGREES = ("CRS84", "4326")  # parts of the names of coordinate systems in longitude and latitude
_TOLERANCE = 0.01  # contours may extend beyond the slide by this fraction of its width and height
_CORNER = 1 / 8  # contours within this fraction of the width and height are probably in pixels of a smaller image
_MIN_RING = 4  # points of a closed triangle, whose first point is repeated at the end
_QUPATH = re.compile(rb'"objectType"|"object_type"|"Path(?:Annotation|Detection|Cell|Tile|Root)Object"|"TMACoreObject"')
"""Properties and ids that only QuPath writes: since version 0.4, in version 0.3, and in earlier versions."""
_IGNORED = ("ignore*", "ignore")  # class names of areas to exclude, in QuPath and in masks for segmentation
_PIXELS = "write the coordinates in pixels of the slide's full resolution (level 0)"


def read_contours(path: Path, width: int, height: int, origin: tuple[int, int] = (0, 0)) -> list[Polygon]:
    """Read the contours of a slide (`read_polygons`), and check that their coordinates are in pixels of this slide.

    Args:
        width: Width of the slide at level 0.
        height: Height of the slide at level 0.
        origin: Level-0 pixel where QuPath's coordinates start (see `clipit.slides.qupath`); the
            coordinates of other programs start at 0.

    Returns:
        The polygons, including those of the class `Ignore*` (`is_ignored`).

    Raises:
        DataError: The file cannot be read (`read_polygons`), or its coordinates are not in pixels of this slide (with a
            tolerance of 1% at the borders).
    """
    polygons, system = read_polygons(path)
    if origin != (0, 0) and _QUPATH.search(path.read_bytes()):
        polygons = [polygon.shifted(*origin) for polygon in polygons]
    _check_coordinates(polygons, width, height, path, system)
    return polygons


def is_ignored(polygon: Polygon) -> bool:
    """Return whether a polygon has QuPath's class `Ignore*`, whose areas are cut out of the other polygons."""
    return polygon.name.strip().lower() in _IGNORED


def read_polygons(path: Path, content: bytes | None = None, *, may_be_empty: bool = False) -> tuple[list[Polygon], str]:
    """Read the polygons of a GeoJSON file, and the name of its coordinate system ("" if unstated).

    A FeatureCollection, a Feature, a geometry or a list of these is accepted. Polygons, multipolygons and collections
    of them are read; a polygon is named after its class (QuPath's `classification`) or its `name`. Points, lines, empty
    geometries, rings without an area and TMA cores that QuPath marks as missing are dropped and counted in the log.
    Polygons that QuPath places on other focal planes or time points are used and counted: their position is the same.

    Args:
        content: Content of the file, if it comes from a zip; None to read the file.
        may_be_empty: Whether a file without a polygon is allowed.

    Raises:
        DataError: The file cannot be read, is not GeoJSON, or has no polygon.
    """
    dropped: Counter[str] = Counter()
    value = _read_json(path, content)
    polygons = [
        cleaned for polygon in _polygons(value, path, dropped) if (cleaned := _without_flat_rings(polygon, dropped))
    ]
    if any(dropped.values()):
        counts = ", ".join(f"{count} x {kind}" for kind, count in sorted(dropped.items()) if count)
        logger.info(f"note: {path}: dropped geometries: {counts}")
    if planes := _other_planes(value):
        logger.warning(
            f"{path}: {counted(planes.total(), 'geometry lies', 'geometries lie')} on a plane other than the first in "
            f"QuPath ({shortlist([f'{plane}: {count}' for plane, count in sorted(planes.items())])}), and "
            f"{'is' if planes.total() == 1 else 'are'} used for the plane that is read"
        )
    if not polygons and not may_be_empty:
        raise DataError(
            "no polygon in the contour file", where=path, fix="draw the tissue as polygons, or omit the file"
        )
    return polygons, str(value.get("crs", "")) if isinstance(value, dict) else ""


def _read_json(path: Path, content: bytes | None) -> Any:
    try:
        if content is None:
            with disk_errors(path):
                content = path.read_bytes()
        return json.loads(content.decode("utf-8-sig"))
    except FileNotFoundError:
        advice = f"correct the path; {similar_names(str(path))}"
        raise DataError("no such contour file", where=path, fix=advice) from None
    except (ValueError, RecursionError) as error:  # includes bytes that are not UTF-8
        raise DataError(
            f"the contour file is not JSON: {error}", where=path, fix="export the contours as GeoJSON (.geojson)"
        ) from None


def _polygons(value: Any, path: Path, dropped: Counter[str], name: str = "") -> Iterator[Polygon]:
    """Yield the polygons of a GeoJSON value."""
    if isinstance(value, list):
        for item in value:
            yield from _polygons(item, path, dropped, name)
        return
    geojson_type = value.get("type") if isinstance(value, dict) else None
    if geojson_type == "FeatureCollection":
        yield from _polygons(_member(value, "features", path), path, dropped)
    elif geojson_type == "Feature":
        properties = value.get("properties")
        if value.get("geometry") is None:
            dropped["empty geometry"] += 1
        elif isinstance(properties, dict) and str(properties.get("isMissing")).lower() == "true":
            dropped["TMA core marked as missing in QuPath"] += 1
        else:
            yield from _polygons(value["geometry"], path, dropped, _name(properties))
    elif geojson_type == "GeometryCollection":
        yield from _polygons(_member(value, "geometries", path), path, dropped, name)
    elif geojson_type == "Polygon":
        yield from _polygon(_member(value, "coordinates", path), path, dropped, name)
    elif geojson_type == "MultiPolygon":
        for rings in _member(value, "coordinates", path):
            yield from _polygon(rings, path, dropped, name)
    elif isinstance(geojson_type, str) and geojson_type in _WITHOUT_AREA:
        dropped[geojson_type] += 1
    else:
        shown = f"type {geojson_type!r}" if isinstance(value, dict) else type(value).__name__
        raise DataError(
            f"the contour file is JSON, but not GeoJSON: {shown} instead of a feature or geometry",
            where=path,
            fix="export the contours as GeoJSON: a FeatureCollection of polygons",
        )


def _other_planes(value: Any) -> Counter[str]:
    """Count the geometries that QuPath places on a focal plane (z) or time point (t) other than the first."""
    features = value.get("features", [value]) if isinstance(value, dict) else value
    geometries = (each.get("geometry", each) for each in features if isinstance(each, dict))
    planes = (each.get("plane") for each in geometries if isinstance(each, dict))
    shown = (
        ", ".join(f"{axis} {plane[axis]}" for axis in ("z", "t") if plane.get(axis))
        for plane in planes
        if isinstance(plane, dict)
    )
    return Counter(filter(None, shown))


def _member(value: dict[str, Any], key: str, path: Path) -> list[Any]:
    member = value.get(key)
    if not isinstance(member, list):
        raise DataError(
            f"a {value['type']} in the contour file has no list of {key}", where=path, fix="export it again"
        )
    return member


def _name(properties: Any) -> str:
    """Return the class of a feature, or its name; empty if it has neither."""
    if not isinstance(properties, dict):
        return ""
    class_name = properties.get("classification")
    if isinstance(class_name, dict):
        class_name = class_name.get("name") or class_name.get("names")
    if isinstance(class_name, list):
        class_name = ": ".join(map(str, class_name))
    return str(class_name or properties.get("name") or "")


def _polygon(rings: Any, path: Path, dropped: Counter[str], name: str) -> Iterator[Polygon]:
    if not isinstance(rings, list) or not rings:
        dropped["polygon without a ring"] += 1
        return
    exterior, *holes = [_ring(ring, path) for ring in rings]
    yield Polygon(exterior, tuple(holes), name)


def _ring(corners: Any, path: Path) -> Float64[np.ndarray, "_ 2"]:
    """Return the corners of a ring, closed; a third coordinate is dropped."""
    try:
        pairs = [(corner[0], corner[1]) for corner in corners]
        if not {type(number) for pair in pairs for number in pair} <= {int, float}:
            raise TypeError  # NumPy would convert strings and booleans, and a string is a sequence of characters
        ring = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError, IndexError, KeyError, OverflowError):
        raise DataError(
            "a ring in the contour file is not a list of coordinate pairs", where=path, fix="export the contours again"
        ) from None
    if not np.isfinite(ring).all():
        raise DataError("a coordinate in the contour file is not finite", where=path, fix="export the contours again")
    return ring if len(ring) == 0 or (ring[0] == ring[-1]).all() else np.concatenate([ring, ring[:1]])


def _without_flat_rings(polygon: Polygon, dropped: Counter[str]) -> Polygon | None:
    """Drop holes without an area; return None if the polygon itself has no area."""
    if _is_flat(polygon.exterior):
        dropped["ring with fewer than three corners"] += 1
        return None
    holes = tuple(hole for hole in polygon.holes if not _is_flat(hole))
    if len(holes) < len(polygon.holes):
        dropped["hole with fewer than three corners"] += len(polygon.holes) - len(holes)
    return replace(polygon, holes=holes)


def _is_flat(ring: Float64[np.ndarray, "_ 2"]) -> bool:
    return len(ring) < _MIN_RING or bool((np.ptp(ring, axis=0) == 0).any())


def _check_coordinates(polygons: list[Polygon], width: int, height: int, path: Path, system: str) -> None:
    """Check that the coordinates are in pixels of this slide."""
    extents = np.array([polygon.extent for polygon in polygons])
    low, high = extents[:, 0].min(axis=0), extents[:, 1].max(axis=0)
    size = np.array([width, height])
    extent = f"x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}"
    if any(name in system for name in _DEGREES) and (np.abs([low, high]) <= [180, 90]).all():
        raise DataError(f"the contour file is in degrees of longitude and latitude: {extent}", where=path, fix=_PIXELS)
    if high.max() <= 1:
        raise DataError(
            f"the coordinates in the contour file are at most 1, so they are not pixels: {extent}",
            where=path,
            fix=f"multiply them by the width and height of the slide ({width} x {height})",
        )
    if (low < -_TOLERANCE * size).any() or (high > (1 + _TOLERANCE) * size).any():
        raise DataError(
            f"contours lie outside the slide ({width} x {height} pixels): {extent}; this may be the contour file of "
            "a different slide",
            where=path,
            fix=f"use the contours of this slide, or {_PIXELS}",
        )
    if (high < _CORNER * size).all():
        share = math.ceil(100 * float((high / size).max()))
        logger.warning(
            f"{path}: all contours lie in the upper left {share}% of the slide; they must be in level-0 pixels"
        )
