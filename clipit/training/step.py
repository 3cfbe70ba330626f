"""One step: forward and backward of a global batch, each loss term a global sum over a global count."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Int, Integer, UInt8, UInt64
from torch import Tensor

from clipit.config.run import RunConfig
from clipit.distributed import Processes
from clipit.models.student import StudentOutput
from clipit.tiles.augment import augment
from clipit.tiles.pixel_source import PixelSource
from clipit.training.bag_term import bag_term
from clipit.training.batches import BatchPlan
from clipit.training.losses import (
    consistency_sum,
    cosine_distillation_sum,
    cross_entropy_sum,
    prototype_logits,
    soft_cross_entropy_sum,
)
from clipit.training.teaching import Teaching

if TYPE_CHECKING:
    from accelerate import Accelerator

_SALT = np.uint64(0x9E3779B97F4A7C15)  # tells the copies of a tile in one batch apart
_SECOND_VIEW = np.uint64(0xC2B2AE3D27D4EB4F)  # and the two views of one copy
Normalise = Callable[[Tensor], Tensor]
Slice = tuple[Int[np.ndarray, "b"], UInt8[np.ndarray, "b 3 h w"]]


@dataclass(frozen=True)
class Lesson:
    """What a step reads: which tiles, their pixels and labels, and what they are taught beside these."""

    plan: BatchPlan
    source: PixelSource
    labels: Int[np.ndarray, "n"]
    keys: UInt64[np.ndarray, "n"]
    teaching: Teaching


@dataclass
class Clock:
    """How long a training takes, and how much of it is waiting."""

    start: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    tiles: int = 0

    def seconds(self) -> float:
        """Since the start of the training."""
        return max(time.perf_counter() - self.start, 1e-9)

    def speed(self) -> float:
        """Tiles per second, over all processes."""
        return self.tiles / self.seconds()

    def waiting(self) -> float:
        """Share of the time spent waiting for tiles."""
        return self.waited / self.seconds()


def term_weights(config: RunConfig) -> dict[str, float]:
    """The loss is the sum of these weights times the terms of the same name."""
    teachers = 1 if config.second_vlm is None else 2  # both together weigh what one does
    return {
        "cross_entropy": 1.0,
        "distillation": config.distillation.weight / teachers,
        "second_distillation": config.distillation.weight / teachers,
        "bags": config.bags.weight,
        "prompt_bags": config.prompt_bags.weight,
        "soft_labels": config.soft_labels.weight,
        "consistency": config.consistency.weight,
    }


def slices(lesson: Lesson, steps: range, processes: Processes, accumulation: int) -> Iterator[Slice]:
    """This process's micro-batches, step after step, read ahead."""
    return lesson.source.ahead(rows for s in steps for rows in own_parts(lesson.plan.rows(s), processes, accumulation))


def own_parts(
    of_batch: Integer[np.ndarray, "b"], processes: Processes, accumulation: int
) -> list[Integer[np.ndarray, "_"]]:
    """This process's slice of something that has one entry per tile of the global batch, cut into micro-batches."""
    return np.array_split(of_batch[processes.rank :: processes.count], accumulation)


def one_step(
    config: RunConfig,
    model: torch.nn.Module,
    normalise: Normalise,
    lesson: Lesson,
    batches: Iterator[Slice],
    step: int,
    processes: Processes,
    accelerator: "Accelerator",
    clock: Clock,
) -> dict[str, Tensor]:
    """Forward and backward of one global batch; this process's share of each loss term, and of the loss."""
    t, weights = config.training, term_weights(config)
    everything = lesson.plan.rows(step)
    keys = own_parts(lesson.keys[everything] + _SALT * occurrences(everything), processes, t.accumulation)
    counts = _counts(config, lesson, everything)
    terms: dict[str, Tensor] = {}
    for micro in range(t.accumulation):
        before = time.perf_counter()
        rows, pixels = next(batches)
        clock.waited += time.perf_counter() - before
        clock.tiles += len(rows) * processes.count
        images = torch.from_numpy(pixels).to(processes.device, non_blocking=True)
        views = [augment(images, keys[micro], config.seed, step, t.augmentation)]
        if config.consistency.weight > 0:
            views.append(augment(images, keys[micro] ^ _SECOND_VIEW, config.seed, step, t.augmentation))
        exchange = accelerator.no_sync(model) if micro < t.accumulation - 1 else nullcontext()
        with exchange:
            with accelerator.autocast():
                output = model(normalise(torch.cat(views)))  # one pass: two would confuse the gradient exchange
            sums = _sums(config, lesson, model, rows, everything, output, processes)
            found = {name: value / counts[name] for name, value in sums.items()}
            loss = sum(
                (weights[name] * value for name, value in found.items()), torch.zeros((), device=processes.device)
            )
            accelerator.backward(loss * processes.count)  # the exchange averages over processes
        for name, value in (found | {"loss": loss}).items():
            terms[name] = terms.get(name, torch.zeros((), device=processes.device)) + value.detach()
    return terms


def occurrences(rows: Int[np.ndarray, "b"]) -> UInt64[np.ndarray, "b"]:
    """How often each row came before in the same batch: few labels repeat, and each copy is augmented anew."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    first = np.searchsorted(ordered, ordered, side="left")
    counts = np.empty(len(rows), dtype=np.uint64)
    counts[order] = (np.arange(len(rows)) - first).astype(np.uint64)
    return counts


def _counts(config: RunConfig, lesson: Lesson, rows: Int[np.ndarray, "b"]) -> Mapping[str, float]:
    """What each term's sum is divided by: valid tiles of the whole batch, or their weights."""
    teaching = lesson.teaching
    labelled = float((lesson.labels[rows] >= 0).sum())
    soft = float(_soft_weights(lesson, rows).sum())
    second = teaching.second
    counts = {
        "cross_entropy": labelled,
        "distillation": float(_distilled(config, lesson, rows).sum()),
        "second_distillation": float((_distilled(config, lesson, rows) & second.valid[rows]).sum()) if second else 0.0,
        "prompt_bags": labelled + soft,
        "soft_labels": soft,
        "consistency": float(_two_views(lesson, rows).sum()),
        "bags": 1.0,  # a mean already
    }
    return {name: count if count > 0 else 1.0 for name, count in counts.items()}


def _sums(
    config: RunConfig,
    lesson: Lesson,
    model: torch.nn.Module,
    rows: Int[np.ndarray, "b"],
    everything: Int[np.ndarray, "_"],
    output: StudentOutput,
    processes: Processes,
) -> dict[str, Tensor]:
    """The sum of each term over these tiles; terms that are off are left out."""
    teaching, n = lesson.teaching, len(rows)
    logits = output.logits.float()
    labels = _tensor(lesson.labels[rows], processes)
    sums = {"cross_entropy": cross_entropy_sum(logits[:n], labels, config.training.label_smoothing)}
    wanted = _distilled(config, lesson, rows)
    for name, targets, projected in (
        ("distillation", teaching.targets, output.projected),
        ("second_distillation", teaching.second, output.second),
    ):
        if targets is not None and projected is not None:
            vectors = _tensor(targets.vectors[rows].astype(np.float32), processes)
            mask = _tensor(wanted & targets.valid[rows], processes)
            sums[name] = cosine_distillation_sum(projected[:n].float(), vectors, mask)
    soft, soft_weights = teaching.soft, _tensor(_soft_weights(lesson, rows), processes)
    if soft is not None:
        sums["soft_labels"] = soft_cross_entropy_sum(
            logits[:n], _tensor(soft.probabilities[rows], processes), soft_weights
        )
    if teaching.prototypes is not None and output.projected is not None and config.prompt_bags.weight > 0:
        prototypes = _tensor(teaching.prototypes, processes)
        read = prototype_logits(output.projected[:n].float(), prototypes, config.prompt_bags.temperature)
        sums["prompt_bags"] = cross_entropy_sum(read, labels)
        if soft is not None:
            likely = _tensor(soft.probabilities[rows], processes)
            sums["prompt_bags"] = sums["prompt_bags"] + soft_cross_entropy_sum(read, likely, soft_weights)
    if config.consistency.weight > 0:
        sums["consistency"] = consistency_sum(logits[:n], logits[n:], _tensor(_two_views(lesson, rows), processes))
    if teaching.bags is not None and output.projected is not None:
        sums["bags"] = bag_term(config.bags, teaching.bags, model, output.projected[:n].float(), everything, processes)
    return sums


def _distilled(config: RunConfig, lesson: Lesson, rows: Int[np.ndarray, "b"]) -> Bool[np.ndarray, "b"]:
    """Which of these tiles are distilled."""
    targets = lesson.teaching.targets
    if targets is None or config.distillation.tiles == "none":
        return np.zeros(len(rows), dtype=bool)
    wanted = np.asarray(targets.valid[rows], dtype=bool)
    return wanted & (lesson.labels[rows] >= 0) if config.distillation.tiles == "labelled" else wanted


def _two_views(lesson: Lesson, rows: Int[np.ndarray, "b"]) -> Bool[np.ndarray, "b"]:
    """Tiles whose two views should agree: those without a label; all where every tile has one."""
    unlabelled = np.asarray(lesson.labels[rows] < 0, dtype=np.bool_)
    return unlabelled if len(lesson.plan.unlabelled) else np.ones(len(rows), dtype=np.bool_)


def _soft_weights(lesson: Lesson, rows: Int[np.ndarray, "b"]) -> np.ndarray:
    """Weights of the soft labels of these tiles: none for those that have a label."""
    soft = lesson.teaching.soft
    if soft is None:
        return np.zeros(len(rows), dtype=np.float32)
    return np.asarray(soft.weights[rows] * (lesson.labels[rows] < 0), dtype=np.float32)


def _tensor(values: np.ndarray, processes: Processes) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(processes.device)
