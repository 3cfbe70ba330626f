"""Peak memory of mapping a slide with many tiles, relative to the same slide with a quarter of them.

The memory is measured in a separate process: `python -m benchmarks.slide_memory SLIDE MPP OUT` prints it as JSON.
"""

import json
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import Measurement, Options, run_python
from benchmarks.inputs import draw_tile, encode, write_jpeg_slide
from benchmarks.pairing_memory import peak_bytes

if TYPE_CHECKING:
    from PIL import Image

_EDGE = 256  # edge length of the tiles in the slide file, in pixels
_STAIN = (0.9, 0.5, 0.8)
"""Fraction of red, green and blue light that passes through the tissue."""
_REDUCTION = 16  # pixels of the first level per pixel of the second
_FEW, _MANY = 2.0, 1.0  # micrometres per pixel of the tiles


def measure(options: Options) -> list[Measurement]:
    """Measure the peak memory of `clipit slides map` with 16,384 tiles relative to that with 4,096.

    Both runs map the same slide of 32,768 x 32,768 pixels, which is entirely tissue, at different resolutions, so that
    the overview and the maps have the same size. The model is the bundled VLM with the names of two classes.
    """
    side = options.size(32_768, 2_048)
    slide = _make_slide(options.folder / "slide.tif", side)
    peaks: dict[float, list[float]] = {_FEW: [], _MANY: []}
    tiles: dict[float, int] = {}
    for number in range(options.repeats):
        for mpp, values in peaks.items():
            measured = _map(slide, mpp, options.folder / f"maps-{number}-{mpp}")
            values.append(measured["peak"])
            tiles[mpp] = measured["tiles"]
    values = [many / few for many, few in zip(peaks[_MANY], peaks[_FEW], strict=True)]
    name = f"peak memory of mapping a slide, {tiles[_MANY]:,} tiles / {tiles[_FEW]:,} tiles"
    samples = {f"{tiles[mpp]} tiles": values for mpp, values in peaks.items()}
    return [Measurement("slide_memory", name, values, goal=1.1, samples=samples, facts={"side": side})]


def _make_slide(path: Path, side: int) -> Path:
    from PIL import Image

    def stain(image: "Image.Image") -> "Image.Image":
        return Image.fromarray((np.asarray(image) * np.array(_STAIN)).astype(np.uint8))

    rng = np.random.default_rng(0)
    images = [stain(draw_tile(rng, _EDGE)) for _ in range(64)]
    tiles = [encode(image) for image in images]
    small = [np.asarray(image.resize((_EDGE // _REDUCTION,) * 2)) for image in images]

    def number(row: int, column: int) -> int:
        return (7 * row + column) % len(tiles)

    @cache
    def mosaic(first: int) -> bytes:
        span = range(_REDUCTION)
        parts = [[small[(first + number(row, column)) % len(small)] for column in span] for row in span]
        return encode(Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in parts])))

    def tile(level: int, row: int, column: int) -> bytes:
        return mosaic(number(_REDUCTION * row, _REDUCTION * column)) if level else tiles[number(row, column)]

    return write_jpeg_slide(path, [(side, side), (side // _REDUCTION, side // _REDUCTION)], tile)


def _map(slide: Path, mpp: float, out: Path) -> dict[str, Any]:
    output = run_python(["-m", "benchmarks.slide_memory", str(slide), str(mpp), str(out)])
    measured: dict[str, Any] = json.loads(output.splitlines()[-1])
    return measured


def main() -> None:
    """Map a slide, and print the number of tiles and the peak memory in bytes as JSON."""
    import pyarrow.parquet as pq

    from clipit.cli.main import main as run_command

    slide, mpp, out = sys.argv[1:]
    model = ["--vlm", "embedded", "--classes", "tumour; stroma", "--workers", "2"]
    sys.argv = ["clipit", "slides", "map", slide, *model, "--tile-mpp", mpp, "--out", out]
    run_command()
    tiles = sum(pq.read_metadata(file).num_rows for file in Path(out).glob("slides/*/tiles.parquet"))
    print(json.dumps({"tiles": tiles, "peak": peak_bytes()}))


if __name__ == "__main__":
    main()
