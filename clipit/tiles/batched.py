"""Apply a function to batches of tiles, distributed over all processes."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from clipit.distributed import get_processes
from clipit.images.read_ahead import ReadingClock
from clipit.progress import progress
from clipit.tiles.pixel_source import PixelSource

Result = TypeVar("Result")


def map_batches(
    source: PixelSource,
    rows: Int[np.ndarray, "n"],
    compute: Callable[[Tensor], Result],
    batch_size: int,
    title: str | None = None,
) -> list[Result]:
    """Apply a function to the pixels of every batch, without gradients, and gather all results in every process.

    Args:
        rows: Rows of the tiles to read.
        compute: Function that maps uint8 pixels [b, 3, h, w] on this process's device to a picklable result.
        batch_size: Tiles per batch.
        title: Title of the progress bar; None for no bar.

    Returns:
        Results in the order of the batches.
    """
    processes = get_processes()
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    results: dict[int, Result] = {}
    shown = title is not None and processes.main
    clock = ReadingClock()
    with torch.inference_mode(), progress(title or "", len(batches), shown=shown) as advance:
        own_batches = processes.share(range(len(batches)))
        loaded = source.on_device((batches[number] for number in own_batches), processes.device, clock)
        for number, (_, pixels) in zip(own_batches, loaded, strict=True):
            results[number] = compute(pixels)
            advance(processes.count)
    if title is not None and processes.main:
        clock.report(title, "training.threads")
    merged = {number: result for of_process in processes.gather(results) for number, result in of_process.items()}
    return [merged[number] for number in range(len(batches))]
