"""Heat maps overlaid on the overview of a slide, for each class and for the most probable class."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from clipit.output_files.leftovers import delete_leftovers
from clipit.reporting.plots import COLOURS, in_style, new_figure, save_plot
from clipit.slides.grid import SlideGrid
from clipit.slides.heat_map import heat_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOUR_MAP = "viridis"
"""Perceptually uniform colour map for probabilities from 0 to 1."""
_OPACITY = 0.55
_MAX_PIXELS = 900  # longest edge of an image; the slide's page and its OME-TIFF show the details
_COMPRESSION = 1  # PNG level; higher levels barely reduce the size further, and take ten times as long
_DPI = 110  # resolution of `save_plot`
_MORE_COLOURS = ("#7f3c8d", "#6b3e1f", "#f0e442", "#666666")  # purple, brown, yellow, grey
_TINTS = (1.0, 0.55, 0.25)  # fractions of a colour mixed with white, if there are more classes than colours
_SCALE_BAR = 0.2  # maximum length of the scale bar, as a fraction of the slide's width


def class_colours(n: int) -> list[str]:
    """Return a colour per class as #rrggbb: the plot colours except black, more colours, then tints of both."""
    distinct = [colour for colour in (*COLOURS, *_MORE_COLOURS) if colour != "#000000"]
    rgb = [np.array(list(bytes.fromhex(colour[1:]))) for colour in distinct]
    tints = [255 - (255 - colour) * share for share in _TINTS for colour in rgb]
    return ["#" + bytes(np.rint(tints[i % len(tints)]).astype(np.uint8).tolist()).hex() for i in range(n)]


def best_class_colours(means: Float32[np.ndarray, "classes h w"], colours: Sequence[str]) -> UInt8[np.ndarray, "h w 4"]:
    """Return RGBA pixels of the most probable class, transparent where there is no tile."""
    table = np.array([[*bytes.fromhex(colour[1:]), 255] for colour in colours], dtype=np.uint8)
    pixels = np.asarray(table[means.argmax(axis=0)])
    pixels[np.isnan(means[0])] = 0
    return pixels


def write_overlays(
    folder: Path,
    overview: Image.Image,
    grid: SlideGrid,
    classes: Sequence[str],
    scores: Float[np.ndarray, "n classes"],
    colours: Sequence[str] | None = None,
) -> dict[str, Path]:
    """Write images of each class's heat map, and of the most probable class, overlaid on the overview of a slide.

    Each image has a scale bar in micrometres, and a colour bar from 0 to 1 or a legend of the classes.

    Args:
        folder: Output folder for `classes.png` and one file per class, named after its index and name.
        overview: Image of the whole slide, which is shrunk to at most 900 pixels.
        scores: Probabilities from 0 to 1, one row per tile of the grid.
        colours: Colour of each class as #rrggbb; by default those of `class_colours`.

    Returns:
        Path of each image by class name; "" for the most probable class.

    Raises:
        ArtifactError: A file cannot be written, for example because the disk is full.
    """
    delete_leftovers(folder)
    colours = class_colours(len(classes)) if colours is None else colours
    means = heat_map(grid, scores, grid.step)
    small = overview.convert("L").convert("RGB")  # grey, so that the overlaid colours match the legend
    small.thumbnail((_MAX_PIXELS, _MAX_PIXELS))
    paths = {"": folder / "classes.png"}
    save_plot(_plot_classes(small, grid, means, classes, colours), paths[""], _COMPRESSION)
    for i, name in enumerate(classes):
        paths[name] = folder / f"{i:02d}_{_file_name(name)}.png"
        save_plot(_plot_class(small, grid, means[i], name), paths[name], _COMPRESSION)
    return paths


def write_map(
    path: Path, overview: Image.Image, grid: SlideGrid, values: Float[np.ndarray, " n"], title: str, label: str
) -> None:
    """Write an image of one value per tile, overlaid on the overview of a slide, with a scale bar and a colour bar.

    Args:
        overview: Image of the whole slide, which is shrunk to at most 900 pixels.
        values: Value of each tile, from 0 to 1.
        title: Heading of the image.
        label: Label of the colour bar.

    Raises:
        ArtifactError: The file cannot be written.
    """
    small = overview.convert("L").convert("RGB")
    small.thumbnail((_MAX_PIXELS, _MAX_PIXELS))
    means = heat_map(grid, values[:, None], grid.step)[0]
    save_plot(_plot_values(small, grid, means, title, label), path, _COMPRESSION)


def _plot_class(overview: Image.Image, grid: SlideGrid, values: Float32[np.ndarray, "h w"], name: str) -> "Figure":
    return _plot_values(overview, grid, values, f"{grid.slide}: {name}", f"probability of {name}")


@in_style
def _plot_values(
    overview: Image.Image, grid: SlideGrid, values: Float32[np.ndarray, "h w"], title: str, label: str
) -> "Figure":
    figure, axes = _overview_figure(overview, grid, title)
    heat = axes.imshow(
        np.ma.masked_invalid(values), cmap=COLOUR_MAP, vmin=0, vmax=1, extent=_extent(values.shape, grid),
        alpha=_OPACITY, interpolation="nearest",
    )  # fmt: skip
    _finish(axes, grid)
    bar = figure.colorbar(heat, ax=axes, label=label, shrink=0.8)
    if bar.solids is not None:
        bar.solids.set_alpha(1)
    return figure


@in_style
def _plot_classes(
    overview: Image.Image,
    grid: SlideGrid,
    means: Float32[np.ndarray, "classes h w"],
    classes: Sequence[str],
    colours: Sequence[str],
) -> "Figure":
    from matplotlib.patches import Patch

    figure, axes = _overview_figure(overview, grid, f"{grid.slide}: most probable class")
    pixels = best_class_colours(means, colours)
    axes.imshow(pixels, extent=_extent(pixels.shape[:2], grid), alpha=_OPACITY, interpolation="nearest")
    _finish(axes, grid)
    counts = np.bincount(means.argmax(axis=0)[~np.isnan(means[0])], minlength=len(classes))
    shares = counts / max(1, counts.sum())
    patches = [
        Patch(color=colour, label=f"{name} ({share:.1%})")
        for name, colour, share in zip(classes, colours, shares, strict=True)
    ]
    figure.legend(handles=patches, loc="outside right upper", title="class (fraction of the tissue)")
    return figure


def _overview_figure(overview: Image.Image, grid: SlideGrid, title: str) -> tuple["Figure", "Axes"]:
    figure = new_figure(max(4.0, overview.width / _DPI + 2.0), max(2.5, overview.height / _DPI + 0.6))
    axes = figure.add_subplot()
    axes.imshow(np.asarray(overview), extent=(0, grid.width, grid.height, 0))
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
    return figure, axes


def _extent(shape: tuple[int, ...], grid: SlideGrid) -> tuple[float, float, float, float]:
    """Return left, right, bottom and top of a map with one pixel per cell, in pixels of level 0."""
    return 0.0, shape[1] * grid.step, shape[0] * grid.step, 0.0


def _finish(axes: "Axes", grid: SlideGrid) -> None:
    """Limit the axes to the slide, and draw the scale bar at the lower left."""
    from matplotlib.patheffects import withStroke

    axes.set(xlim=(0, grid.width), ylim=(grid.height, 0))
    length = scale_bar(grid.width * grid.mpp)
    halo = [withStroke(linewidth=4, foreground="white")]
    x, y = 0.03 * grid.width, 0.96 * grid.height
    axes.plot([x, x + length / grid.mpp], [y, y], color="black", linewidth=2, solid_capstyle="butt", path_effects=halo)
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} \u00b5m"
    axes.annotate(text, (x, y), (0, 4), textcoords="offset points", fontsize=8, path_effects=halo)


def scale_bar(width: float) -> float:
    """Return the length of a scale bar: 1, 2 or 5 times a power of ten, at most a fifth of the width.

    Args:
        width: Width of the slide in micrometres.
    """
    longest = _SCALE_BAR * width
    power = 10.0 ** np.floor(np.log10(longest))
    return float(max(step for step in (1, 2, 5) if step * power <= longest * (1 + 1e-9)) * power)


def _file_name(name: str) -> str:
    """Replace all characters of a class name except ASCII letters, digits, dots and hyphens."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_.")[:60] or "class"
