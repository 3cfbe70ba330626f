"""Fit a training into the memory of its devices: precision, micro-batches and gradient checkpointing."""

import logging
import math
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from clipit.config.run import RunConfig
from clipit.distributed import Processes, get_processes
from clipit.errors import ConfigError, ModelError
from clipit.free_memory import device_memory
from clipit.models.student import Student
from clipit.training.memory import MemoryEstimate, estimate_memory
from clipit.training.terms.table import all_terms
from clipit.training.terms.term import Normalise

logger = logging.getLogger(__name__)

_USABLE = 0.9  # share of the free memory that is planned; fragmentation and workspaces of libraries take the rest
_FEWEST = 8  # tiles per micro-batch below which checkpointing costs less time than smaller micro-batches
_UNEQUAL = 0.9  # ratio of free memories below which the devices are called different


@dataclass(frozen=True)
class Fit:
    """How a training fits into the memory of its devices.

    Attributes:
        checkpointing: Whether to use gradient checkpointing.
        micro_batches: Micro-batches per step.
        needed: Estimated peak memory of a process in bytes.
        free: Free memory of the smallest device in bytes, with that of the loaded weights.
        parts: What the memory consists of.
    """

    checkpointing: bool
    micro_batches: int
    needed: int
    free: int
    parts: str

    def facts(self) -> dict[str, Any]:
        """Return what is recorded in training.json."""
        return {
            "memory_needed": self.needed,
            "micro_batches": self.micro_batches,
            "gradient_checkpointing": self.checkpointing,
        }

    @property
    def message(self) -> str:
        """Description in one line."""
        return f"memory of training: {_size(self.needed)} of {_size(self.free)} free ({self.parts})"


def fit_training(config: RunConfig, student: Student, normalise: Normalise, pixels: int) -> Fit:
    """Choose micro-batches and checkpointing for a loaded student, and log the estimate.

    Args:
        config: Run configuration, with its arm and precision resolved.
        student: Student on this process's device.
        normalise: Function from pixels 0..255 to the backbone's input.
        pixels: Edge of the input in pixels.

    Raises:
        ConfigError: The batch does not fit, whatever the keys that are `auto`.
        ModelError: `gradient_checkpointing: always`, and the backbone does not support it.
    """
    processes = get_processes()
    precision = config.training.precision

    def estimate(checkpointing: bool) -> MemoryEstimate:
        try:
            memory = estimate_memory(student, normalise, pixels, precision=precision, checkpointing=checkpointing)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                "not even two tiles fit into the memory of the device",
                where=str(processes.device),
                fix="choose a smaller backbone, backbone.tuning=frozen, or a device with more memory",
            ) from error
        return processes.broadcast(memory)

    measured = estimate(False)
    free = _smallest_memory(processes) + measured.weights  # they are loaded
    plain = _fit(config, measured, free, processes.count, config.training.micro_batches, False)
    if config.training.gradient_checkpointing == "always" or plain.needed > _USABLE * free:
        measured = estimate(True)
    fit = choose_fit(config, measured, free, processes.count)
    if processes.main:
        logger.info(fit.message)
    return fit


def choose_fit(config: RunConfig, estimate: MemoryEstimate, free: int, processes: int = 1) -> Fit:
    """Choose micro-batches and checkpointing within the keys of a configuration.

    With `accumulation: auto`, the smallest number of micro-batches that fits. Where checkpointing is `auto`, too, it is
    used if micro-batches would otherwise have fewer than eight tiles.

    Args:
        config: Run configuration, with its arm resolved.
        estimate: Memory of its student.
        free: Free memory of the smallest device in bytes, before the student is loaded.
        processes: Number of processes.

    Raises:
        ConfigError: The batch does not fit; the message gives the numbers and three ways out.
        ModelError: `gradient_checkpointing: always`, and the backbone does not support it.
    """
    t = config.training
    frozen = config.backbone.tuning == "frozen"  # keeps no activations anyway
    supported = estimate.checkpointed is not None and not frozen
    if t.gradient_checkpointing == "always" and not supported and not frozen:
        raise ModelError(
            "the backbone does not support gradient checkpointing",
            where=f"backbone.name: {config.backbone.name}",
            fix="training.gradient_checkpointing=never and training.accumulation=auto, or another backbone",
        )
    modes = {"auto": [False, True], "never": [False], "always": [True]}[t.gradient_checkpointing]
    fits: list[Fit] = []
    for checkpointing in [mode and supported for mode in modes]:
        for count in _micro_batches(config, processes):
            if _fits(config, estimate, free, processes, count, checkpointing):
                fits.append(_fit(config, estimate, free, processes, count, checkpointing))
                break
    if not fits:
        raise _too_large(config, estimate, free, processes, supported)
    few_tiles = _tiles(config, processes, fits[0].micro_batches) < _FEWEST
    return min(fits, key=lambda fit: fit.micro_batches) if few_tiles else fits[0]


def _micro_batches(config: RunConfig, processes: int) -> Iterator[int]:
    """Yield the numbers of micro-batches that the keys and the loss terms permit, each with smaller batches."""
    t = config.training
    if t.accumulation != "auto":
        yield t.accumulation
        return
    previous = 0
    for count in range(1, t.tiles_per_step // processes + 1):
        size = _tiles(config, processes, count)
        if size != previous and (count == 1 or not _problems(config, count)):
            yield count
        previous = size


def _problems(config: RunConfig, micro_batches: int) -> list[str]:
    """Return why loss terms refuse a number of micro-batches."""
    changed = _with(config, accumulation=micro_batches)
    return [problem for term in all_terms(changed) for problem in term.problems()]


def _tiles(config: RunConfig, processes: int, micro_batches: int) -> int:
    """Return the largest number of tiles in a micro-batch of a process."""
    return math.ceil(math.ceil(config.training.tiles_per_step / processes) / micro_batches)


def _views(config: RunConfig) -> int:
    return max((term.views for term in all_terms(config) if term.active), default=1)


def _fit(
    config: RunConfig, estimate: MemoryEstimate, free: int, processes: int, micro_batches: int, checkpointing: bool
) -> Fit:
    images = _tiles(config, processes, micro_batches) * _views(config)
    needed = estimate.total(images, checkpointing=checkpointing, micro_batches=micro_batches, processes=processes)
    per_tile = estimate.per_tile(images, checkpointing=checkpointing)
    notes = [f"{images} images of {_size(per_tile)} at a time"]
    notes += [f"weights {_size(estimate.weights)}", f"gradients {_size(estimate.gradients)}"]
    notes += [f"optimiser {_size(estimate.optimiser)}"]
    notes += [f"{micro_batches} micro-batches per step"] if micro_batches > 1 else []
    notes += ["with gradient checkpointing"] if checkpointing else []
    return Fit(checkpointing, micro_batches, needed, free, ", ".join(notes))


def _fits(
    config: RunConfig, estimate: MemoryEstimate, free: int, processes: int, micro_batches: int, checkpointing: bool
) -> bool:
    return _fit(config, estimate, free, processes, micro_batches, checkpointing).needed <= _USABLE * free


def _too_large(config: RunConfig, estimate: MemoryEstimate, free: int, processes: int, supported: bool) -> ConfigError:
    """Compose the error for a batch that does not fit, with three ways out, the least costly first."""
    t = config.training
    checkpointing = t.gradient_checkpointing != "never" and supported
    automatic = _with(config, accumulation="auto")
    half = _with(config, tiles_per_step=max(t.tiles_per_step // 2, processes))
    while half.training.tiles_per_step > processes and not _fits(half, estimate, free, processes, 1, checkpointing):
        half = _with(half, tiles_per_step=max(half.training.tiles_per_step // 2, processes))
    tries = [("training.gradient_checkpointing=auto", config, t.micro_batches, True)] if supported else []
    for count in _micro_batches(automatic, processes):
        if _fits(config, estimate, free, processes, count, checkpointing):
            tries.append((f"training.accumulation={count}", config, count, checkpointing))
            break
    tries.append((f"training.tiles_per_step={half.training.tiles_per_step}", half, 1, checkpointing))
    ways = []
    for way, changed, count, recomputes in tries:
        fit = _fit(changed, estimate, free, processes, count, recomputes)
        if fit.needed <= _USABLE * free:
            ways.append(f"{way} (needs {_size(fit.needed)})")
    if config.backbone.tuning != "frozen":
        ways.append("backbone.tuning=frozen, which keeps no activations")
    ways += ["a smaller backbone or fewer backbone.pixels", "a device with more memory"]
    smallest = _fit(config, estimate, free, processes, max(_micro_batches(config, processes)), checkpointing)
    return ConfigError(
        f"a step of {t.tiles_per_step} tiles needs {_size(smallest.needed)} ({smallest.parts}), and only "
        f"{_size(int(_USABLE * free))} can be used: {_USABLE:.0%} of the device's free memory",
        where="training.tiles_per_step",
        fix="; or ".join(ways[:3]),
    )


def _with(config: RunConfig, **training: object) -> RunConfig:
    """Copy a configuration with other keys of `training`."""
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


def _smallest_memory(processes: Processes) -> int:
    """Return the free memory of the process with the least, if processes share a device each its part of it."""
    device = processes.device
    place = (socket.gethostname(), str(device))
    devices: Sequence[tuple[tuple[str, str], int]] = processes.gather((place, device_memory(device)))
    places = [where for where, _ in devices]
    shares = [free // places.count(where) for where, free in devices]
    if min(shares) < _UNEQUAL * max(shares) and processes.main:
        logger.info(
            f"note: the devices have different free memory, {', '.join(_size(share) for share in shares)}: "
            "the smallest decides how many tiles fit"
        )
    return min(shares)


def _size(count: int) -> str:
    """Format bytes in MB or GB; few of them as they are."""
    if count < 1e4:
        return f"{count} bytes"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
