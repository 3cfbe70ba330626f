"""Reading tiles of 224 pixels from JPEG slides, against the same tiles as JPEG files from a zip."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Figure, Options, alternate, ratios, seconds
from benchmarks.inputs import SIZE, draw_tile, encode, write_jpeg_slide

_EDGE = 256  # of the slide's own tiles
_REAL = "slides/CMU-1-Small-Region.svs"  # below CLIPIT_TEST_DATA
_BATCH = 64


def measure(options: Options) -> list[Figure]:
    """Measure the tiles per second of `SlideReader` relative to those of `ZipReader`, both with the reading threads.

    The slide is synthetic, with tiles of 256 pixels; its grid is read row by row, as for scoring. A second row is a
    real slide, if the environment variable CLIPIT_TEST_DATA names a folder with it. Its tiles are written to the zip
    with the slide's own quantisation tables and colour space.
    """
    side = options.size(12_288, 1024)
    slide = _make_slide(options.folder / "synthetic.tif", side, options.size(256, 4))
    figures = [_compare(options, "synthetic slide", slide, side, side, {"quality": 90}, options.size(256, 4))]
    data = os.environ.get("CLIPIT_TEST_DATA")
    if data is not None and (Path(data) / _REAL).is_file():
        real = Path(data) / _REAL
        figures.append(_compare(options, real.name, real, 2220, 2967, _jpeg_options(real), 200))
    return figures


def _make_slide(path: Path, side: int, distinct: int) -> Path:
    """Write a slide of `distinct` different tiles, which repeat."""
    rng = np.random.default_rng(0)
    tiles = [encode(draw_tile(rng, _EDGE)) for _ in range(distinct)]
    columns = -(-side // _EDGE)
    return write_jpeg_slide(path, [(side, side)], lambda _, row, column: tiles[(row * columns + column) % distinct])


def _compare(
    options: Options, name: str, slide: Path, width: int, height: int, jpeg: dict[str, Any], distinct: int
) -> Figure:
    import openslide

    from clipit.image_readers import ZipReader
    from clipit.slides.opening import open_slide, over_white
    from clipit.slides.reading import PlacedSlide, SlideReader

    corners = np.array([(x, y) for y in range(0, height - SIZE + 1, SIZE) for x in range(0, width - SIZE + 1, SIZE)])
    x, y = corners.T.astype(np.int32)
    archive = options.folder / f"{slide.stem}.zip"
    opened = open_slide(slide)
    encoded = [
        encode(opened.read_region(int(left), int(top), 0, SIZE, SIZE), **jpeg) for left, top in corners[:distinct]
    ]
    with zipfile.ZipFile(archive, "w") as file:
        for row in range(len(corners)):
            file.writestr(f"{row:06d}.jpg", encoded[row % len(encoded)])
    place = PlacedSlide(slide.stem, slide, float(SIZE), SIZE)

    def read_slide() -> float:
        reader = SlideReader([place], np.zeros(len(x), dtype=np.int32), x, y)
        reader.read(len(x) - 1)  # opens the file, which takes its time once per slide
        return seconds(lambda: _read_all(reader.read, len(x)))

    def read_zip() -> float:
        reader = ZipReader(archive, [f"{row:06d}.jpg" for row in range(len(x))])
        reader.read(len(x) - 1)
        return seconds(lambda: _read_all(reader.read, len(x)))

    def read_openslide() -> float:
        bare = openslide.OpenSlide(str(slide))
        return seconds(
            lambda: _read_all(
                lambda row: over_white(bare.read_region((int(x[row]), int(y[row])), 0, (SIZE, SIZE))), len(x)
            )
        )

    samples = alternate({"slide": read_slide, "zip": read_zip, "openslide": read_openslide}, options)
    facts = {
        "tiles": len(x),
        "bytes_per_tile_in_zip": float(np.mean([len(data) for data in encoded])),
        "tiles_per_second": {side: len(x) / float(np.median(taken)) for side, taken in samples.items()},
        "against_openslide": float(np.median(ratios(samples, "openslide", "slide"))),
        "largest_difference_to_openslide": _difference(slide, corners[:: max(1, len(corners) // 20)]),
    }
    title = f"{name}: tiles/s against a zip"
    values = ratios(samples, "zip", "slide")
    return Figure("slide_tiles", title, values, goal=0.9, at_least=True, samples=samples, facts=facts)


def _read_all(read: Callable[[int], object], count: int) -> None:
    from clipit.read_ahead import read_ahead, reading_threads

    batches = [range(start, min(start + _BATCH, count)) for start in range(0, count, _BATCH)]
    with reading_threads() as pool:
        for _ in read_ahead(batches, read, pool):
            pass


def _difference(slide: Path, corners: np.ndarray) -> int:
    import openslide

    from clipit.slides.opening import open_slide

    ours, bare, largest = open_slide(slide), openslide.OpenSlide(str(slide)), 0
    for x, y in corners.tolist():
        wanted = np.asarray(bare.read_region((x, y), 0, (SIZE, SIZE)).convert("RGB"), dtype=int)
        found = np.asarray(ours.read_region(x, y, 0, SIZE, SIZE), dtype=int)
        largest = max(largest, int(np.abs(found - wanted).max()))
    return largest


def _jpeg_options(slide: Path) -> dict[str, Any]:
    """Return Pillow's options for JPEGs like the tiles of a slide: its quantisation tables, sampling and colours."""
    import tifffile
    from PIL import Image, JpegImagePlugin

    with tifffile.TiffFile(slide) as file:
        page = file.pages[0]
        file.filehandle.seek(page.dataoffsets[0])
        data = file.filehandle.read(page.databytecounts[0])
        rgb = int(page.photometric) == 2
        tables = page.jpegtables
    image: Any
    with Image.open(io.BytesIO(data if tables is None else tables[:-2] + data[2:])) as image:
        return {
            "qtables": image.quantization,
            "subsampling": JpegImagePlugin.get_sampling(image),
            "keep_rgb": rgb,
        }
