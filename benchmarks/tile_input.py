"""Time to decode, resize and batch tiles in threads, relative to the bare decoder and resize.

Decoding and resizing are CPU-bound, so CPU time is compared, which other programs affect less than wall time.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from benchmarks.harness import Measurement, Options, alternate, ratios, seconds
from benchmarks.inputs import draw_tile, encode
from clipit.images.read_ahead import available_cores

_MODEL = 224  # edge length of the model's input in pixels
_WORKERS = 8  # maximum number of threads or processes
_FLOP_PER_TILE = 2 * 61.6e9  # forward pass of a ViT-L/16 at 224 px, with 61.6 billion multiply-adds
_H100_FLOP_PER_SECOND = 4e14  # assumed throughput: 40% of the card's 989 TFLOP/s in bf16


def bare(path: Path) -> UInt8[np.ndarray, "3 224 224"]:
    """Decode and resize a file with Pillow alone, or with simplejpeg for JPEG files where clipit uses it."""
    from clipit.images.jpeg import find_decoder

    decode = find_decoder() if path.suffix == ".jpg" else None
    image = Image.fromarray(decode(path.read_bytes())) if decode else Image.open(path).convert("RGB")
    if image.size != (_MODEL, _MODEL):
        image = image.resize((_MODEL, _MODEL), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def measure(options: Options) -> list[Measurement]:
    """Measure the tiles per second of `PixelSource` relative to the bare libraries in a pool of the same size."""
    measurements = []
    for kind, edge in (("jpg", 224), ("jpg", 256), ("png", 256), ("jpg", 512)):
        files = _write(options.folder / f"{kind}{edge}", kind, edge, options.size(192, 8, 4096))
        measurements.append(_against_bare(files, kind, edge, options))
    files = sorted((options.folder / "jpg256").glob("*/*.jpg"))
    return [*measurements, _threads_against_processes(files, options)]


def _against_bare(files: Sequence[Path], kind: str, edge: int, options: Options) -> Measurement:
    from clipit.config.run import TilesConfig
    from clipit.models.preprocess import Preprocess
    from clipit.tiles.load_tiles import read_tiles
    from clipit.tiles.pixel_source import PixelSource

    preprocess = Preprocess(_MODEL, _MODEL, "shortest", "bicubic", (0.5,) * 3, (0.5,) * 3)
    tiles = read_tiles(TilesConfig(source="folders", path=str(files[0].parents[1])))
    paths = [Path(tiles.reader.where(int(row))) for row in tiles.rows]
    source, threads = PixelSource(tiles, preprocess.pixels), min(_WORKERS, available_cores())
    batches = [np.arange(start, min(start + 64, len(tiles))) for start in range(0, len(tiles), 64)]

    def read_source() -> None:
        for _ in source.ahead(batches):
            pass

    with ThreadPoolExecutor(threads) as pool:
        workloads: dict[str, Callable[[], float]] = {
            "clipit": lambda: _cpu_seconds(read_source),
            "bare": lambda: _cpu_seconds(lambda: list(pool.map(bare, paths))),
        }
        samples = alternate(workloads, options)
    per_core = len(paths) / median(samples["clipit"])
    embedded = _H100_FLOP_PER_SECOND / _FLOP_PER_TILE
    facts = {
        "tiles": len(tiles),
        "threads": threads,
        "equal": bool(np.array_equal(source.batch(batches[0]), np.stack([bare(path) for path in paths[:64]]))),
        "tiles_per_cpu_second": per_core,
        "estimate": f"8 cores: {_WORKERS * per_core:,.0f} tiles/s; an H100 embeds {embedded:,.0f} tiles/s "
        "with a ViT-L/16 at 400 TFLOP/s",
    }
    name = f"reading {kind.upper()} of {edge} px: CPU time of the bare libraries / clipit"
    return Measurement("tile_input", name, ratios(samples, "bare", "clipit"), goal=0.9, at_least=True,
                  samples=samples, facts=facts)  # fmt: skip


def _threads_against_processes(files: Sequence[Path], options: Options) -> Measurement:
    """Measure a pool of processes, which pass the pixels to the parent, relative to a pool of threads."""
    count = min(_WORKERS, available_cores())
    spawn = multiprocessing.get_context("spawn")  # a forked child of a program with OpenMP threads may hang
    with ThreadPoolExecutor(count) as threads, ProcessPoolExecutor(count, mp_context=spawn) as processes:

        def reading(pool: Executor) -> float:
            return seconds(lambda: list(pool.map(bare, files, chunksize=8)))

        reading(processes)  # start the processes
        samples = alternate({"threads": lambda: reading(threads), "processes": lambda: reading(processes)}, options)
    facts = {"workers": count, "tiles": len(files)}
    name = "reading JPEG of 256 px: time of processes / threads"
    return Measurement("tile_input", name, ratios(samples, "processes", "threads"), samples=samples, facts=facts)


def _cpu_seconds(function: Callable[[], object]) -> float:
    """Measure the CPU time of a function in all threads of the process."""
    start = time.process_time()
    function()
    return time.process_time() - start


def _write(folder: Path, kind: str, edge: int, count: int) -> list[Path]:
    """Write image files into class folders, some for validation."""
    rng = np.random.default_rng(0)
    images = [encode(draw_tile(rng, edge), {"jpg": "JPEG", "png": "PNG"}[kind]) for _ in range(min(count, 64))]
    files = []
    for number in range(count):
        path = folder / ("tumour", "stroma")[number % 2] / f"{number:05d}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images[number % len(images)])
        files.append(path)
    return files
