"""Page of a slide: zoomable overview with heat maps, slide scores, and top tiles with their nearest texts."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64
from PIL import Image

from clipit.reporting.heat_maps import best_class_colours, class_colours
from clipit.reporting.html import Include, Link, PageSection, Part, Table, Text, facts_table, page
from clipit.reporting.tables import number
from clipit.reporting.thumbnails import encode_jpeg, jpeg_uri
from clipit.slides.grid import SlideGrid, tile_id
from clipit.slides.heat_map import halved, heat_map
from clipit.slides.polygons import Polygon

OVERVIEW_PIXELS = 2_400
"""Longest edge of the overview on a page."""
_OVERVIEW_BYTES = 3_000_000  # maximum size of the overview
_LAYER_BYTES = 2_500_000  # maximum total size of the layers
_LEVELS = 32  # number of opacity levels for probabilities on the page
_OUTLINE = 2_000  # steps along the longest edge of the slide, to which outlines are rounded


@dataclass(frozen=True)
class Neighbour:
    """A text near a tile: a prompt or a snippet.

    Attributes:
        cosine: Cosine similarity between tile and text.
        source: Class of the prompt, or id of the snippet; "" for none.
    """

    text: str
    cosine: float
    source: str = ""


@dataclass(frozen=True)
class TopTile:
    """A tile with one of the highest scores for a class.

    Attributes:
        row: Row of the tile in the grid.
        picture: Data URI of its thumbnail; None for no picture.
        prompts: Nearest prompts, nearest first.
        snippets: Nearest snippets of reports, nearest first.
    """

    row: int
    picture: str | None
    prompts: Sequence[Neighbour] = ()
    snippets: Sequence[Neighbour] = ()


@dataclass(frozen=True)
class SlidePage:
    """Content of a slide's page.

    Attributes:
        scores: Probabilities, one row per tile of the grid.
        overview: Image of the whole slide, excluding the label and macro images.
        tissue: Outlines of the tissue, in pixels of level 0.
        facts: Facts about the slide and the classifier, and their provenance.
        slide_scores: Scores of all classes by name of the pooling, such as `mean of the top 10 tiles`.
        top: Top tiles of each class.
        note: Warning shown at the top of the page; "" for none.
        index: Path of the page that lists all slides, relative to the folder of this page; "" for no link.
        colours: Colour of each class as #rrggbb; by default those of `class_colours`.
    """

    grid: SlideGrid
    classes: Sequence[str]
    scores: Float[np.ndarray, "n classes"]
    overview: Image.Image
    tissue: Sequence[Polygon]
    facts: Mapping[str, object]
    slide_scores: Mapping[str, Sequence[float | None]]
    top: Sequence[Sequence[TopTile]]
    note: str = ""
    index: str = ""
    colours: Sequence[str] = field(default_factory=tuple)


def slide_page(slide: SlidePage) -> str:
    """Render the page of a slide as HTML.

    The page stays below 8 MB as long as the thumbnails of the top tiles take no more than 1 MB. Without JavaScript, it
    shows the most probable class over the overview.
    """
    colours = list(slide.colours) or class_colours(len(slide.classes))
    sections = []
    if slide.slide_scores:
        rows = [(name, *(number(value) for value in values)) for name, values in slide.slide_scores.items()]
        caption = "Slide scores by pooling method"
        sections.append(PageSection("Slide scores", [Table(("pooling", *slide.classes), rows, caption=caption)]))
    sections += [
        PageSection("Map", [Include("slide_map.html", _map_values(slide, colours))]),
        PageSection("Slide", [facts_table(_facts(slide) | dict(slide.facts))]),
    ]
    sections.append(PageSection("Top tiles", _top_parts(slide, colours)))
    title = f"Slide {slide.grid.slide}"
    return page(title, slide.note, sections, script="slide_script.html", library=_openseadragon())


def top_rows(grid: SlideGrid, scores: Float[np.ndarray, "n classes"], k: int) -> list[list[int]]:
    """Return the rows of the k highest-scoring tiles for each class, the highest first; overlapping tiles are skipped.

    Args:
        k: Number of tiles per class; fewer are returned if all other tiles overlap with them.
    """
    return [_separate(grid, np.argsort(-scores[:, number], kind="stable"), k) for number in range(scores.shape[1])]


def _separate(grid: SlideGrid, order: Int64[np.ndarray, " n"], k: int) -> list[int]:
    chosen: list[int] = []
    for row in order.tolist():
        if len(chosen) == k:
            break
        dx, dy = np.abs(grid.x[chosen] - grid.x[row]), np.abs(grid.y[chosen] - grid.y[row])
        if not ((dx < grid.edge) & (dy < grid.edge)).any():
            chosen.append(row)
    return chosen


@cache
def _openseadragon() -> str:
    """Return the script of the viewer, without the link to its source map, which is not packaged."""
    file = resources.files("clipit.reporting") / "vendor/openseadragon/openseadragon.min.js"
    code, _, _ = file.read_text(encoding="utf-8").rpartition("//# sourceMappingURL=")
    return code


def _facts(slide: SlidePage) -> dict[str, object]:
    grid = slide.grid
    size = f"{grid.width:,} x {grid.height:,} pixels ({_mm(grid.width, grid)} x {_mm(grid.height, grid)} mm)"
    tiles = f"{len(grid):,}; edge {grid.edge * grid.mpp:.4g} µm, step {grid.step * grid.mpp:.4g} µm"
    facts = {"slide": grid.slide, "size": size, "resolution": f"{grid.mpp:.4g} µm per pixel", "tiles": tiles}
    return facts | ({"other slides": Link("all slides", slide.index)} if slide.index else {})


def _mm(pixels: int, grid: SlideGrid) -> str:
    return f"{pixels * grid.mpp / 1000:.2f}"


def _top_parts(slide: SlidePage, colours: Sequence[str]) -> list[Part]:
    """Build one part per class with its top tiles; classes without top tiles have no part."""
    grid = slide.grid
    parts: list[Part] = []
    for code, (name, tiles) in enumerate(zip(slide.classes, slide.top, strict=True)):
        cards = [
            {
                "id": tile_id(grid.slide, int(grid.x[tile.row]), int(grid.y[tile.row]), grid.edge),
                "x": int(grid.x[tile.row]),
                "y": int(grid.y[tile.row]),
                "probability": number(float(slide.scores[tile.row, code])),
                "picture": tile.picture,
                "texts": [("Nearest prompts", tile.prompts), ("Nearest snippets", tile.snippets)],
            }
            for tile in tiles
        ]
        if cards:
            values = {"name": name, "colour": colours[code], "tiles": cards, "edge": grid.edge}
            parts.append(Include("slide_tiles.html", values))
    return parts or [Text("No top tiles were selected.")]


def _map_values(slide: SlidePage, colours: Sequence[str]) -> dict[str, Any]:
    """Return the values for the map template: overview, layers and outline."""
    grid = slide.grid
    means, cell = heat_map(grid, slide.scores, grid.step), grid.step
    layers = _layers(means, slide.classes, colours)
    while sum(len(layer["picture"]) for layer in layers) > _LAYER_BYTES and max(means.shape[1:]) > 1:
        means, cell = halved(means), 2 * cell
        layers = _layers(means, slide.classes, colours)
    rows, columns = means.shape[1:]
    unit = max(grid.width, grid.height) / _OUTLINE
    return {
        "slide": grid.slide,
        "width": grid.width,
        "height": grid.height,
        "mpp": grid.mpp,
        "overview": jpeg_uri(base64.b64encode(_overview_jpeg(slide.overview)).decode()),
        "layers": layers,
        "across": columns * cell / grid.width,
        "down": rows * cell / grid.height,
        "outline": outline_path(slide.tissue, unit),
        "view_box": f"0 0 {grid.width / unit:.3f} {grid.height / unit:.3f}",
    }


def _overview_jpeg(overview: Image.Image) -> bytes:
    """Encode the overview, shrunk until it takes at most 3 MB."""
    pixels = OVERVIEW_PIXELS
    while len(encoded := encode_jpeg(overview, pixels, 80)) > _OVERVIEW_BYTES:
        pixels = pixels * 3 // 4
    return encoded


def _layers(
    means: Float32[np.ndarray, "classes h w"], classes: Sequence[str], colours: Sequence[str]
) -> list[dict[str, str]]:
    """Return the name, colour and image of each layer: the most probable class, then the probability of each class."""
    best = Image.fromarray(best_class_colours(means, colours), "RGBA")
    layers = [{"name": "most probable class", "colour": "", "picture": _png_uri(best)}]
    for values, name, colour in zip(means, classes, colours, strict=True):
        layers.append({"name": name, "colour": colour, "picture": _png_uri(*_shaded(values, colour))})
    return layers


def _shaded(values: Float32[np.ndarray, "h w"], colour: str) -> tuple[Image.Image, bytes]:
    """Return a single-colour picture whose opacity is the probability, and the opacity of each palette entry."""
    steps = np.rint(np.clip(np.nan_to_num(values), 0, 1) * (_LEVELS - 1)).astype(np.uint8)
    picture = Image.fromarray(steps, "L").convert("P")
    picture.putpalette(bytes.fromhex(colour[1:]) * _LEVELS)
    return picture, bytes(round(255 * level / (_LEVELS - 1)) for level in range(_LEVELS))


def _png_uri(picture: Image.Image, transparency: bytes | None = None) -> str:
    stream = io.BytesIO()
    if transparency is None:
        picture.save(stream, format="PNG", optimize=True)
    else:
        picture.save(stream, format="PNG", optimize=True, transparency=transparency)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def outline_path(polygons: Sequence[Polygon], unit: float) -> str:
    """Return the rings of polygons as an SVG path, with corners rounded to whole units.

    Args:
        polygons: Polygons in pixels of level 0.
        unit: Pixels of level 0 per unit of the path.
    """
    parts = []
    for polygon in polygons:
        for ring in (polygon.exterior, *polygon.holes):
            corners = np.rint(ring[:-1] / unit).astype(np.int64)
            corners = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)]
            if len(corners) > 1:
                parts.append("M" + "L".join(f"{x} {y}" for x, y in corners.tolist()) + "Z")
    return "".join(parts)
