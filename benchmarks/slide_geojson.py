"""Time to write the predictions of a slide for QuPath, relative to `json.dumps` of the same features."""

import json
from pathlib import Path

import numpy as np

from benchmarks.harness import Measurement, Options, alternate, ratios, seconds
from clipit.slides.grid import SlideGrid
from clipit.slides.qupath import write_tiles_geojson

_CLASSES = tuple(f"class {i}" for i in range(8))
_COLOURS = tuple(f"#{i:02x}0000" for i in range(8))


def measure(options: Options) -> list[Measurement]:
    """Time the writing of 100,000 tiles with the probabilities of 8 classes, relative to a floor.

    The floor encodes the same features, already in memory as dictionaries, with `json.dumps` and writes the text.
    """
    grid = _grid(options.size(100_000, 200))
    scores = np.random.default_rng(0).dirichlet(np.ones(8), len(grid)).astype(np.float32)
    path, copy = options.folder / "tiles.geojson", options.folder / "floor.geojson"
    write_tiles_geojson(path, grid, _CLASSES, scores, _COLOURS)
    features = json.loads(path.read_text(encoding="utf-8"))

    workloads = {
        "clipit": lambda: seconds(lambda: write_tiles_geojson(path, grid, _CLASSES, scores, _COLOURS)),
        "json.dumps": lambda: seconds(lambda: _write(copy, features)),
    }
    samples = alternate(workloads, options)
    same = json.loads(copy.read_text(encoding="utf-8")) == json.loads(path.read_text(encoding="utf-8"))
    facts = {"tiles": len(grid), "classes": 8, "megabytes": path.stat().st_size / 1e6, "same_features": same}
    return [
        Measurement(
            "slide_geojson", f"{len(grid):,} tiles", samples["clipit"], "s", goal=15.0, samples=samples, facts=facts
        ),
        Measurement(
            "slide_geojson", "ratio to json.dumps", ratios(samples, "clipit", "json.dumps"), goal=2.0, facts=facts
        ),
    ]


def _grid(n: int) -> SlideGrid:
    """Return a grid of n tiles in rows of 400."""
    cells = np.arange(n)
    x, y = (cells % 400 * 448).astype(np.int32), (cells // 400 * 448).astype(np.int32)
    size = (400 * 448, (n // 400 + 1) * 448)
    return SlideGrid("a slide of the usual length", *size, 0.25, 448, 448.0, x, y, np.ones(n, dtype=np.float32))


def _write(path: Path, features: object) -> None:
    path.write_text(json.dumps(features, separators=(",", ":")), encoding="utf-8")
