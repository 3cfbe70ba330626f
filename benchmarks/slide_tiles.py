"""Speed of reading 224-pixel tiles from slides, relative to files with the same compression in a zip."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Measurement, Options, alternate, ratios, seconds
from benchmarks.inputs import SIZE, draw_tile, encode, write_jpeg2000_slide, write_jpeg_slide

_EDGE = 256  # edge length of the tiles in the slide file, in pixels
_REAL = "slides/CMU-1-Small-Region.svs"  # in CLIPIT_TEST_DATA
_BATCH = 64  # tiles read together
_MAX_TILES = 4096  # maximum number of tiles read from a slide
_JPEG = 7  # TIFF code of JPEG compression
_JPEG2000: dict[str, Any] = {"kind": "JPEG2000", "quality_mode": "rates", "quality_layers": [12], "irreversible": True}
"""Compression to a twelfth of the size of the pixels, similar to that of real slides."""


def measure(options: Options) -> list[Measurement]:
    """Measure the tiles per second of `SlideReader` relative to those of `ZipReader`, both using reader threads.

    The slides are synthetic, with 256-pixel tiles in JPEG and in JPEG 2000; their grids are read row by row, as
    for scoring. Additional measurements are made on the slides given by `--slide` or, if there are none, on a real
    slide in the folder that the environment variable CLIPIT_TEST_DATA names. JPEG tiles of a real slide are written to
    the zip with the slide's quantisation tables and colour space, other tiles as JPEG 2000 of about the same size.
    """
    distinct = options.size(256, 4)
    slide = _make_slide(options.folder / "synthetic.tif", options.size(12_288, 1024), distinct)
    measurements = [_compare(options, "synthetic slide", slide, {"quality": 90}, distinct)]
    slide = _make_slide(options.folder / "synthetic.svs", options.size(6_144, 1024), distinct, jpeg2000=True)
    measurements.append(_compare(options, "synthetic JPEG 2000 slide", slide, _JPEG2000, distinct))
    data = os.environ.get("CLIPIT_TEST_DATA")
    known = [Path(data) / _REAL] if data is not None and (Path(data) / _REAL).is_file() else []
    for path in options.slides or known:
        measurements.append(_compare(options, path.name, path, _encoding(path), _MAX_TILES))
    return measurements


def _make_slide(path: Path, side: int, distinct: int, *, jpeg2000: bool = False) -> Path:
    """Write a slide of `distinct` different tiles, which repeat."""
    rng = np.random.default_rng(0)
    options = {**_JPEG2000, "no_jp2": True} if jpeg2000 else {}
    tiles = [encode(draw_tile(rng, _EDGE), **options) for _ in range(distinct)]
    columns = -(-side // _EDGE)

    def tile(_: int, row: int, column: int) -> bytes:
        return tiles[(row * columns + column) % distinct]

    return write_jpeg2000_slide(path, (side, side), tile) if jpeg2000 else write_jpeg_slide(path, [(side, side)], tile)


def _compare(options: Options, name: str, slide: Path, encoding: dict[str, Any], distinct: int) -> Measurement:
    import openslide

    from clipit.images.image_readers import ZipReader
    from clipit.slides.opening import open_slide, over_white
    from clipit.slides.reading import PlacedSlide, SlideReader

    archive = options.folder / f"{slide.stem}.zip"
    opened = open_slide(slide)
    rows, columns = (range(0, length - SIZE + 1, SIZE) for length in (opened.levels[0].height, opened.levels[0].width))
    corners = np.array([(x, y) for y in rows for x in columns][:_MAX_TILES])
    x, y = corners.T.astype(np.int32)
    encoded = [
        encode(opened.read_region(int(left), int(top), 0, SIZE, SIZE), **encoding) for left, top in corners[:distinct]
    ]
    with zipfile.ZipFile(archive, "w") as file:
        for row in range(len(corners)):
            file.writestr(f"{row:06d}", encoded[row % len(encoded)])
    place = PlacedSlide(slide.stem, slide, float(SIZE), SIZE)

    def read_slide() -> float:
        reader = SlideReader([place], np.zeros(len(x), dtype=np.int32), x, y)
        reader.read(len(x) - 1)  # opens the file, which is not part of the measured time
        return seconds(lambda: _read_all(reader.read, len(x)))

    def read_zip() -> float:
        reader = ZipReader(archive, [f"{row:06d}" for row in range(len(x))])
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
        "tiles_per_second": {side: len(x) / float(np.median(times)) for side, times in samples.items()},
        "against_openslide": float(np.median(ratios(samples, "openslide", "slide"))),
        "largest_difference_to_openslide": _difference(slide, corners[:: max(1, len(corners) // 20)]),
    }
    title = f"{name}: tiles/s relative to a zip"
    values = ratios(samples, "zip", "slide")
    return Measurement("slide_tiles", title, values, goal=0.9, at_least=True, samples=samples, facts=facts)


def _read_all(read: Callable[[int], object], count: int) -> None:
    from clipit.images.read_ahead import read_ahead, reading_threads

    batches = [range(start, min(start + _BATCH, count)) for start in range(0, count, _BATCH)]
    with reading_threads() as pool:
        for _ in read_ahead(batches, read, pool):
            pass


def _difference(slide: Path, corners: np.ndarray) -> int:
    import openslide

    from clipit.slides.opening import open_slide

    opened, bare, largest = open_slide(slide), openslide.OpenSlide(str(slide)), 0
    for x, y in corners.tolist():
        expected = np.asarray(bare.read_region((x, y), 0, (SIZE, SIZE)).convert("RGB"), dtype=int)
        actual = np.asarray(opened.read_region(x, y, 0, SIZE, SIZE), dtype=int)
        largest = max(largest, int(np.abs(actual - expected).max()))
    return largest


def _encoding(slide: Path) -> dict[str, Any]:
    """Return the Pillow options that encode images like the tiles of a slide.

    For JPEG tiles, these are the quantisation tables, chroma subsampling and colour space. Tiles of other slides are
    encoded as JPEG 2000 at the slide's own bytes per pixel.
    """
    import tifffile
    from PIL import Image, JpegImagePlugin

    with tifffile.TiffFile(slide) as file:
        page: Any = file.pages[0]
        if int(page.compression) != _JPEG:
            raw = page.imagewidth * page.imagelength * page.samplesperpixel
            return {**_JPEG2000, "quality_layers": [raw / sum(page.databytecounts)]}
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
