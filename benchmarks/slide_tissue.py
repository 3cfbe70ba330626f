"""Time of tissue detection and tiling on a slide of 100,000 x 100,000 pixels, relative to reading its overview."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness import Measurement, Options, alternate, ratios
from benchmarks.inputs import draw_tile, encode, write_jpeg_slide

if TYPE_CHECKING:
    from PIL import Image

_EDGE = 256  # edge length of the tiles in the slide file, in pixels
_MPP = 0.25  # micrometres per pixel of the finest level


def measure(options: Options) -> list[Measurement]:
    """Measure the CPU seconds of tissue detection and tiling, and their ratio to those of reading the overview.

    Both run in one thread, so CPU time equals wall time on an idle machine. The overview is 4,096 pixels wide, the
    largest size in use, and is read from a level of 6,250 pixels, as most scanners write. A third of the slide is
    tissue, with noise, small pieces and holes.
    """
    from clipit.config.data import SlidesConfig
    from clipit.slides.grid import make_grid
    from clipit.slides.opening import open_slide
    from clipit.slides.reading import read_overview
    from clipit.slides.tissue import TissueShare, find_tissue

    side, edge = options.size(100_000, 4096), options.size(4096, 256)
    slide = _make_slide(options.folder / "slide.tif", side, edge)
    downsample, tiles = side / edge, SlidesConfig(mpp=0.5, pixels=224)
    picture, grids = _draw_overview(edge), []

    def overview() -> float:
        opened = open_slide(slide)
        return _cpu_seconds(lambda: read_overview(opened, downsample))

    def grid() -> None:
        share = TissueShare(find_tissue(picture, _MPP * downsample), downsample)
        grids.append(make_grid("slide", side, side, _MPP, tiles, share.of_squares))

    samples = alternate({"tissue and grid": lambda: _cpu_seconds(grid), "overview": overview}, options)
    facts = {"overview": edge, "tiles": len(grids[0])}
    cpu_seconds, values = samples["tissue and grid"], ratios(samples, "tissue and grid", "overview")
    name = "tissue and grid of 100,000 px, CPU"
    return [
        Measurement("slide_tissue", name, cpu_seconds, "s", goal=1.0, samples=samples, facts=facts),
        Measurement("slide_tissue", "ratio to reading the overview", values, facts=facts),
    ]


def _cpu_seconds(function: Callable[[], object]) -> float:
    """Call a function and return the CPU seconds that it takes in this thread."""
    start = time.thread_time()
    function()
    return time.thread_time() - start


def _make_slide(path: Path, side: int, edge: int) -> Path:
    """Write a slide with a blank finest level and a coarser one of random tiles, from which the overview is read."""
    from PIL import Image

    rng = np.random.default_rng(0)
    blank = encode(Image.new("RGB", (_EDGE, _EDGE), "white"))
    tiles = [encode(draw_tile(rng, _EDGE)) for _ in range(64)]
    coarse = side // 16 if side // 16 >= edge else side // 4
    levels = [(side, side), (coarse, coarse)]
    return write_jpeg_slide(path, levels, lambda level, row, column: tiles[(7 * row + column) % 64] if level else blank)


def _draw_overview(edge: int) -> "Image.Image":
    """Draw round pieces of tissue with holes and specks on a noisy background."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(0)
    image = Image.new("RGB", (edge, edge), (243, 241, 244))
    draw = ImageDraw.Draw(image)
    parts = (((200, 130, 180), 12, 0.17), ((243, 241, 244), 200, 0.01), ((90, 60, 140), 300, 0.004))
    for colour, count, largest in parts:
        radii = rng.uniform(0.3, 1, count) * largest * edge
        for x, y, radius in zip(*rng.uniform(0, edge, (2, count)), radii, strict=True):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    noisy = np.asarray(image).astype(np.int16) + rng.integers(-12, 13, (edge, edge, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
