"""Memory needed to stitch maps, which should not grow with the height of the image."""

import tracemalloc
from collections.abc import Iterator

import numpy as np

from benchmarks.harness import Measurement, Options

_TIMES = 8  # height of the tall image, relative to the short one
_CLASSES = 8  # scores per window


def measure(options: Options) -> list[Measurement]:
    """Measure the peak memory of arrays while the maps of two images of the same width are stitched.

    The decoded image and the finished map, which both grow with the image, are not counted.
    """
    width, height = options.size(4096, 256), options.size(1024, 512)
    measurements = []
    for kind, run in (("patch tokens", _token_map), ("windows", _window_map)):
        ratios: list[float] = []
        samples: dict[str, list[float]] = {"low": [], "high": []}
        for _ in range(options.repeats):
            low, high = (_peak(run(width, height * times)) for times in (1, _TIMES))
            samples["low"].append(low)
            samples["high"].append(high)
            ratios.append(high / low)
        facts = {"width": width, "heights": [height, height * _TIMES], "bytes": samples["high"][0]}
        name = f"stitching {kind}: memory for an image {_TIMES} times as tall, relative to the shorter one"
        measurements.append(Measurement("map_stitching", name, ratios, "", 1.05, False, samples, facts))
    return measurements


def _peak(results: Iterator[object]) -> float:
    """Return the peak memory in bytes while results are produced one by one and dropped."""
    tracemalloc.start()
    for _ in results:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return float(peak)


def _token_map(width: int, height: int) -> Iterator[object]:
    """Stitch the tokens of a model that returns zeros: 14 x 14 tokens of 384 dimensions per window of 224 pixels."""
    import torch
    from PIL import Image

    from clipit.models.patch_tokens import PatchTokens
    from clipit.models.preprocess import Preprocess
    from clipit.segmentation.token_maps import lattice_of, token_rows

    side, dim = 14, 384
    tokens = PatchTokens(
        "zeros", "backbone", Preprocess(224, 224, "shortest", "bicubic", (0.5,) * 3, (0.5,) * 3), side, dim, None,
        "zeros", torch.device("cpu"), lambda pixels: torch.zeros(len(pixels), side, side, dim),
    )  # fmt: skip
    image = Image.new("RGB", (width, height))
    return token_rows(image, lattice_of(height, width, float("nan"), tokens), tokens, batch_size=4)


def _window_map(width: int, height: int) -> Iterator[object]:
    """Stitch the scores of windows of 224 pixels, which overlap by three quarters of their edge length."""
    from clipit.segmentation.stitching import WindowGrid, stitch

    edge = min(224, height)
    grid = WindowGrid(width, height, edge, edge // 4)
    scores = (np.zeros((len(batch), _CLASSES), dtype=np.float32) for batch in grid.batches(64))
    return stitch(grid, scores)
