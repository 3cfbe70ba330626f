"""Write tile predictions and regions as GeoJSON that QuPath (0.4 and later) can import.

QuPath reads each feature as an object: `objectType`, a UUID as `id`, a `classification` with a name and a colour,
numbers as `measurements`, and a closed polygon in level-0 pixels. If a slide's file records the bounds of the scanned
area (MRXS, SCN), QuPath shows only this area and counts pixels from its corner, which is passed as `origin`.
"""

import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from clipit.errors import DataError, counted
from clipit.output_files.artifacts import whole_file
from clipit.slides.grid import SlideGrid, tile_id
from clipit.slides.heat_map import heat_map
from clipit.slides.polygons import Polygon, trace_regions

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "clipit-pathology")
_BLOCK = 2_000  # tiles per write
_DECIMALS = 2  # decimals of coordinates, as in files written by QuPath
_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def write_tiles_geojson(
    path: Path,
    grid: SlideGrid,
    classes: Sequence[str],
    scores: Float[np.ndarray, "n classes"],
    colours: Sequence[str],
    origin: tuple[int, int] = (0, 0),
) -> None:
    """Write each tile as an object with its most probable class, and the probabilities of all classes as measurements.

    The file is written atomically and in blocks, so that memory does not depend on the number of tiles. UUIDs are
    derived from the ids of the tiles.

    Args:
        colours: Colour of each class, as #rrggbb.
        origin: Level-0 pixel where coordinates start.

    Raises:
        DataError: A score is not finite.
        ArtifactError: The file cannot be written, for example because the disk is full.
    """
    classifications = [_json(_classification(name, colour)) for name, colour in zip(classes, colours, strict=True)]
    names = [_json(f"probability: {name}").replace("%", "%%") for name in classes]
    measurements = "{" + ",".join(f"{name}:%.6g" for name in names) + "}"
    _check_finite(grid, scores)

    def features() -> Iterator[str]:
        for start in range(0, len(grid), _BLOCK):
            block = slice(start, start + _BLOCK)
            rows = (grid.x[block].tolist(), grid.y[block].tolist(), scores[block].tolist())
            for x, y, values, best in zip(*rows, scores[block].argmax(axis=1).tolist(), strict=True):
                name = tile_id(grid.slide, x, y, grid.edge)
                right, bottom = min(x + grid.edge, grid.width) - origin[0], min(y + grid.edge, grid.height) - origin[1]
                left, top = x - origin[0], y - origin[1]
                yield (
                    f'{{"type":"Feature","id":"{uuid.uuid5(_NAMESPACE, name)}","geometry":{{"type":"Polygon",'
                    f'"coordinates":[[[{left},{top}],[{right},{top}],[{right},{bottom}],[{left},{bottom}],[{left},{top}]]]}},'
                    f'"properties":{{"objectType":"tile","name":{_json(name)},"classification":{classifications[best]},'
                    f'"isLocked":true,"measurements":{measurements % tuple(values)}}}}}'
                )

    _write_collection(path, features())


def write_regions_geojson(
    path: Path,
    grid: SlideGrid,
    classes: Sequence[str],
    scores: Float[np.ndarray, "n classes"],
    colours: Sequence[str],
    origin: tuple[int, int] = (0, 0),
) -> None:
    """Write connected regions with the same most probable class as annotations.

    Each cell of the grid has the class with the largest mean probability over the tiles that contain its centre.
    Measurements are the area in square micrometres, the number of cells, and the mean probability of the region's
    class.

    Args:
        colours: Colour of each class, as #rrggbb.
        origin: Level-0 pixel where coordinates start.

    Raises:
        DataError: A score is not finite.
        ArtifactError: The file cannot be written, for example because the disk is full.
    """
    _check_finite(grid, scores)
    means = heat_map(grid, scores, grid.step)
    best = np.where(np.isnan(means[0]), -1, means.argmax(axis=0))

    def features() -> Iterator[str]:
        for number, (name, colour) in enumerate(zip(classes, colours, strict=True)):
            for region in _regions(best, means, number, name, colour, grid, origin):
                yield _json(region)

    _write_collection(path, features())


def write_polygons_geojson(path: Path, slide: str, polygons: Sequence[Polygon], name: str, colour: str) -> None:
    """Write polygons, such as the tissue of a slide, as annotations of one class.

    Args:
        slide: Name of the slide, which determines the UUIDs.
        polygons: Polygons in level-0 pixels.
        colour: Colour of the class, as #rrggbb.

    Raises:
        ArtifactError: The file cannot be written, for example because the disk is full.
    """
    classification = _classification(name, colour)
    features = (
        _json(_annotation(f"{slide}\n{name}\n{i}", polygon, classification, {})) for i, polygon in enumerate(polygons)
    )
    _write_collection(path, features)


def _regions(
    best: Int64[np.ndarray, "h w"],
    means: Float32[np.ndarray, "classes h w"],
    number: int,
    name: str,
    colour: str,
    grid: SlideGrid,
    origin: tuple[int, int],
) -> Iterator[dict[str, Any]]:
    """Yield the features of the regions of one class."""
    from scipy import ndimage

    labels, n = ndimage.label(best == number)
    if n == 0:
        return
    sizes = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    probabilities = ndimage.mean(means[number], labels, np.arange(1, n + 1))
    classification, limit = _classification(name, colour), np.array([grid.width, grid.height])
    for i, polygon in enumerate(trace_regions(labels, n, grid.step)):
        # the last row and column of cells may extend beyond the slide
        inside = Polygon(np.minimum(polygon.exterior, limit), tuple(np.minimum(hole, limit) for hole in polygon.holes))
        measurements = {
            "area um^2": float(f"{inside.area * grid.mpp**2:.6g}"),
            "cells": int(sizes[i]),
            "mean probability": float(f"{probabilities[i]:.6g}"),
        }
        yield _annotation(
            f"{grid.slide}\n{name}\n{i}", inside.shifted(-origin[0], -origin[1]), classification, measurements
        )


def _annotation(
    key: str, polygon: Polygon, classification: dict[str, Any], measurements: dict[str, float]
) -> dict[str, Any]:
    rings = [np.round(ring, _DECIMALS).tolist() for ring in (polygon.exterior, *polygon.holes)]
    properties = {"objectType": "annotation", "classification": classification, "isLocked": True}
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(_NAMESPACE, key)),
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": properties | ({"measurements": measurements} if measurements else {}),
    }


def _classification(name: str, colour: str) -> dict[str, Any]:
    """Return a class for QuPath, with a name on one line."""
    return {"name": " ".join(name.split()) or "unnamed", "color": list(bytes.fromhex(colour.removeprefix("#")))}


def _check_finite(grid: SlideGrid, scores: Float[np.ndarray, "n classes"]) -> None:
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(bad):
        i = int(bad[0])
        raise DataError(
            f"{counted(len(bad), 'tile has', 'tiles have')} scores that are not finite numbers",
            where=tile_id(grid.slide, int(grid.x[i]), int(grid.y[i]), grid.edge),
            fix="score the slide again with a classifier whose outputs are finite",
        )


def _write_collection(path: Path, features: Iterator[str]) -> None:
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write('{"type":"FeatureCollection","features":[')
        for i, feature in enumerate(features):
            stream.write(",\n" if i else "\n")
            stream.write(feature)
        stream.write("\n]}\n")
