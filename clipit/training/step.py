"""One step: forward and backward of a global batch, each loss term a global sum over a global count."""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int, Integer, UInt8, UInt64
from torch import Tensor

from clipit.config.run import RunConfig
from clipit.distributed import Processes
from clipit.tiles.augment import augment
from clipit.tiles.pixel_source import PixelSource
from clipit.training.batches import BatchPlan
from clipit.training.terms.term import MicroBatch, Normalise, Term

if TYPE_CHECKING:
    from accelerate import Accelerator

_COPY = np.uint64(0x9E3779B97F4A7C15)  # makes the augmentation of a tile's copies in one batch differ
_VIEW = 0xC2B2AE3D27D4EB4F  # and that of the views of one copy
Slice = tuple[Int[np.ndarray, "b"], UInt8[np.ndarray, "b 3 h w"]]


@dataclass(frozen=True)
class TrainingData:
    """Training tiles, and what is learnt from them.

    Attributes:
        plan: Which tiles are in which step.
        source: Pixels of the training tiles.
        labels: Their class numbers; -1 where unknown.
        keys: Their augmentation keys.
        terms: Prepared loss terms, in the order of summation.
    """

    plan: BatchPlan
    source: PixelSource
    labels: Int[np.ndarray, "n"]
    keys: UInt64[np.ndarray, "n"]
    terms: Sequence[Term[Any]]


@dataclass
class Clock:
    """How long a training takes, and which share of it is spent waiting for tiles."""

    start: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    tiles: int = 0

    def seconds(self) -> float:
        """Seconds since the start of the training."""
        return max(time.perf_counter() - self.start, 1e-9)

    def speed(self) -> float:
        """Tiles per second, over all processes."""
        return self.tiles / self.seconds()

    def data_wait(self) -> float:
        """Share of the time spent waiting for tiles."""
        return self.waited / self.seconds()


def slices(data: TrainingData, steps: range, processes: Processes, accumulation: int) -> Iterator[Slice]:
    """This process's micro-batches, step after step, read ahead."""
    return data.source.ahead(
        rows for step in steps for rows in local_parts(data.plan.rows(step), processes, accumulation)
    )


def local_parts(
    values: Integer[np.ndarray, "b"], processes: Processes, accumulation: int
) -> list[Integer[np.ndarray, "_"]]:
    """This process's share of values with one entry per tile of the global batch, cut into micro-batches."""
    return np.array_split(values[processes.rank :: processes.count], accumulation)


def one_step(
    config: RunConfig,
    model: torch.nn.Module,
    normalise: Normalise,
    data: TrainingData,
    batches: Iterator[Slice],
    step: int,
    processes: Processes,
    accelerator: "Accelerator",
    clock: Clock,
) -> dict[str, Tensor]:
    """Forward and backward of one global batch; returns this process's share of each loss term, and of the loss.

    Args:
        config: Run configuration, its arm resolved.
        model: The student, possibly inside the wrapper that exchanges gradients.
        normalise: Pixels 0..255 to the backbone's input.
        data: Training tiles and loss terms.
        batches: This process's micro-batches, from this step on.
        step: Number of the step, from 0.
        processes: The processes that share the batch.
        accelerator: Mixed precision and gradient exchange.
        clock: Counts tiles and the time spent waiting for them.
    """
    t = config.training
    batch_rows = data.plan.rows(step)
    keys = local_parts(data.keys[batch_rows] + _COPY * occurrences(batch_rows), processes, t.accumulation)
    counts = {term.name: max(term.count(batch_rows), 0.0) or 1.0 for term in data.terms}
    n_views = max(term.views for term in data.terms)
    losses: dict[str, Tensor] = {}
    for micro in range(t.accumulation):
        before = time.perf_counter()
        rows, pixels = next(batches)
        clock.waited += time.perf_counter() - before
        clock.tiles += len(rows) * processes.count
        images = torch.from_numpy(pixels).to(processes.device, non_blocking=True)
        views = [
            augment(images, keys[micro] ^ np.uint64(_VIEW * view % 2**64), config.seed, step, t.augmentation)
            for view in range(n_views)
        ]
        exchange = accelerator.no_sync(model) if micro < t.accumulation - 1 else nullcontext()
        with exchange:
            with accelerator.autocast():
                output = model(normalise(torch.cat(views)))  # one pass: two would confuse the gradient exchange
            n, logits = len(rows), output.logits.float()
            labels = torch.from_numpy(np.ascontiguousarray(data.labels[rows])).to(processes.device)
            batch = MicroBatch(
                rows=rows,
                batch_rows=batch_rows,
                labels=labels,
                views=logits.split(n),
                projection=None if output.projected is None else output.projected[:n].float(),
                second_projection=None if output.second is None else output.second[:n].float(),
                student=model,
                processes=processes,
            )
            means = {term.name: term.sum(batch) / counts[term.name] for term in data.terms}
            weighted = (term.weight * means[term.name] for term in data.terms)
            loss = sum(weighted, torch.zeros((), device=processes.device))
            accelerator.backward(loss * processes.count)  # the exchange averages over processes
        for name, value in (means | {"loss": loss}).items():
            losses[name] = losses.get(name, torch.zeros((), device=processes.device)) + value.detach()
    return losses


def occurrences(rows: Int[np.ndarray, "b"]) -> UInt64[np.ndarray, "b"]:
    """How often each row came before in the same batch: few labels repeat, and each copy is augmented anew."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    first = np.searchsorted(ordered, ordered, side="left")
    counts = np.empty(len(rows), dtype=np.uint64)
    counts[order] = (np.arange(len(rows)) - first).astype(np.uint64)
    return counts
