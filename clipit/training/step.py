"""One training step on a global batch: each loss term is a global sum divided by a global count."""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int, Integer, UInt64
from torch import Tensor

from clipit.config.run import RunConfig
from clipit.distributed import Processes
from clipit.images.read_ahead import ReadingClock
from clipit.tiles.augment import augment
from clipit.tiles.pixel_source import PixelSource
from clipit.training.batches import BatchPlan
from clipit.training.terms.term import MicroBatch, Normalise, Term

if TYPE_CHECKING:
    from accelerate import Accelerator

_COPY = np.uint64(0x9E3779B97F4A7C15)  # changes the augmentation seed for each further copy of a tile in a batch
_VIEW = 0xC2B2AE3D27D4EB4F  # changes the augmentation seed for each view of a copy
LocalBatch = tuple[Int[np.ndarray, "b"], Tensor]
"""Rows of one micro-batch of this process, and their pixels on the device, uint8 [b, 3, h, w]."""


@dataclass(frozen=True)
class TrainingData:
    """Training tiles, their labels and the loss terms.

    Attributes:
        plan: Rows of each global batch.
        source: Pixels of the training tiles.
        labels: Class indices of the training tiles; -1 if unknown.
        keys: Hash of each training tile's id; it seeds the tile's augmentation.
        terms: Prepared loss terms, in the order of summation.
    """

    plan: BatchPlan
    source: PixelSource
    labels: Int[np.ndarray, "n"]
    keys: UInt64[np.ndarray, "n"]
    terms: Sequence[Term[Any]]


@dataclass
class Clock:
    """Training timer for the throughput and the fraction of time spent waiting for tiles.

    Attributes:
        start: Start of training, as returned by `time.perf_counter`.
        waited: Seconds that the steps have spent waiting for tiles.
        tiles: Number of tiles so far, over all processes.
        reading: Clock of this process's reader threads.
    """

    start: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    tiles: int = 0
    reading: ReadingClock = field(default_factory=ReadingClock)

    def seconds(self) -> float:
        """Return the seconds since the start of training."""
        return max(time.perf_counter() - self.start, 1e-9)

    def speed(self) -> float:
        """Return the throughput in tiles per second, over all processes."""
        return self.tiles / self.seconds()

    def data_wait(self) -> float:
        """Return the fraction of the time spent waiting for tiles."""
        return self.waited / self.seconds()


def local_batches(
    data: TrainingData, steps: range, processes: Processes, accumulation: int, clock: ReadingClock | None = None
) -> Iterator[LocalBatch]:
    """Iterate over this process's micro-batches in step order, prefetched to its device."""
    batches = (rows for step in steps for rows in local_parts(data.plan.rows(step), processes, accumulation))
    return data.source.on_device(batches, processes.device, clock)


def local_parts(
    values: Integer[np.ndarray, "b"], processes: Processes, accumulation: int
) -> list[Integer[np.ndarray, "_"]]:
    """Select this process's share of a global batch, given one value per tile, and split it into micro-batches."""
    return np.array_split(values[processes.rank :: processes.count], accumulation)


def one_step(
    config: RunConfig,
    model: torch.nn.Module,
    normalise: Normalise,
    data: TrainingData,
    batches: Iterator[LocalBatch],
    step: int,
    processes: Processes,
    accelerator: "Accelerator",
    clock: Clock,
) -> dict[str, Tensor]:
    """Run the forward and backward pass of a step; return this process's share of each loss term and of the loss.

    Args:
        config: Run configuration, with its arm resolved.
        model: Student, possibly wrapped in DistributedDataParallel.
        normalise: Function from pixels 0..255 to the backbone's input.
        batches: This process's micro-batches, starting with this step.
        step: Index of the step, from 0.
        accelerator: Accelerator for mixed precision and gradient synchronisation.
        clock: Timer that counts tiles and the time spent waiting for them.
    """
    t = config.training
    batch_rows = data.plan.rows(step)
    keys = local_parts(data.keys[batch_rows] + _COPY * occurrences(batch_rows), processes, t.micro_batches)
    counts = {term.name: max(term.count(batch_rows), 0.0) or 1.0 for term in data.terms}
    n_views = max(term.views for term in data.terms)
    losses: dict[str, Tensor] = {}
    for micro in range(t.micro_batches):
        before = time.perf_counter()
        rows, images = next(batches)
        clock.waited += time.perf_counter() - before
        clock.tiles += len(rows) * processes.count
        views = [
            augment(images, keys[micro] ^ np.uint64(_VIEW * view % 2**64), config.seed, step, t.augmentation)
            for view in range(n_views)
        ]
        synchronisation = accelerator.no_sync(model) if micro < t.micro_batches - 1 else nullcontext()
        with synchronisation:
            with accelerator.autocast():
                output = model(normalise(torch.cat(views)))  # two passes would break gradient synchronisation
            n, logits = len(rows), output.logits.float()
            labels = torch.from_numpy(np.ascontiguousarray(data.labels[rows])).to(processes.device)
            batch = MicroBatch(
                rows=rows,
                batch_rows=batch_rows,
                labels=labels,
                views=logits.split(n),
                projections=() if output.projected is None else output.projected.float().split(n),
                second_projection=None if output.second is None else output.second[:n].float(),
                student=model,
                processes=processes,
            )
            means = {term.name: term.sum(batch) / counts[term.name] for term in data.terms}
            weighted = (term.weight * means[term.name] for term in data.terms)
            loss = sum(weighted, torch.zeros((), device=processes.device))
            accelerator.backward(loss * processes.count)  # since gradients are averaged over processes
        for name, value in (means | {"loss": loss}).items():
            losses[name] = losses.get(name, torch.zeros((), device=processes.device)) + value.detach()
    return losses


def occurrences(rows: Int[np.ndarray, "b"]) -> UInt64[np.ndarray, "b"]:
    """Count the earlier occurrences of each row in the batch, so that repeated tiles are augmented differently."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    first = np.searchsorted(ordered, ordered, side="left")
    counts = np.empty(len(rows), dtype=np.uint64)
    counts[order] = (np.arange(len(rows)) - first).astype(np.uint64)
    return counts
