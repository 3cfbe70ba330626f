"""Fit training into device memory by choosing micro-batches and gradient checkpointing."""

import logging
import math
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clipit.config.run import RunConfig
from clipit.distributed import Processes, get_processes
from clipit.errors import ClipitError, ConfigError, ModelError, counted, is_out_of_memory
from clipit.free_memory import device_memory
from clipit.images.read_ahead import bytes_ahead
from clipit.models.student import Student
from clipit.training.memory_estimate import MemoryEstimate, estimate_memory
from clipit.training.terms.term import Normalise
from clipit.training.terms.term_table import all_terms

logger = logging.getLogger(__name__)

_USABLE = 0.9  # fraction of the free memory that a plan may use; fragmentation and library workspaces take the rest
_MIN_TILES = 8  # tiles per micro-batch below which checkpointing costs less time than smaller micro-batches
_logged: set[str] = set()  # messages that this process has logged; the runs of a comparison often repeat them
_UNEQUAL = 0.9  # ratio of the smallest to the largest free memory below which the difference is logged


@dataclass(frozen=True)
class MemoryPlan:
    """Micro-batches and checkpointing of a run, with the estimated memory.

    Attributes:
        checkpointing: Whether to use gradient checkpointing.
        needed: Estimated peak memory of a process in bytes.
        free: Smallest free memory of any device in bytes, plus the memory that the loaded weights and tiles occupy.
        parts: Breakdown of the needed memory, as text.
        notes: Warnings and notes to log.
    """

    checkpointing: bool
    micro_batches: int
    needed: int
    free: int
    parts: str
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the needed memory is within the usable fraction of the free memory."""
        return self.needed <= _USABLE * self.free

    def facts(self) -> dict[str, Any]:
        """Return the entries for training.json."""
        return {
            "memory_needed": self.needed,
            "micro_batches": self.micro_batches,
            "gradient_checkpointing": self.checkpointing,
        }

    @property
    def message(self) -> str:
        """One-line description for the log."""
        return f"training memory: {_size(self.needed)} of {_size(self.free)} free ({self.parts})"


@dataclass(frozen=True)
class _Budget:
    """Memory that a process may use."""

    free: int  # free memory in bytes
    processes: int
    reserved: int  # bytes that are not available to the student
    pixels: int  # edge length of the prefetched tiles; 0 to ignore them


def plan_memory(
    config: RunConfig, student: Student, normalise: Normalise, pixels: int, cached: int = 0, held: int = 0
) -> MemoryPlan:
    """Choose micro-batches and checkpointing for a loaded student, and log the estimate.

    Args:
        config: Run configuration, with its arm and precision resolved.
        normalise: Function from pixels 0..255 to the backbone's input.
        pixels: Edge length of the input in pixels.
        cached: Bytes that the tile cache will hold in the CPU's memory.
        held: Bytes of `cached` that the cache already holds, from earlier runs in this process.

    Raises:
        ConfigError: The batch does not fit for any value of the keys that are `auto`.
        ModelError: `gradient_checkpointing: always`, and the backbone does not support it.
    """
    processes = get_processes()
    precision = config.training.precision

    def estimate(checkpointing: bool) -> MemoryEstimate:
        memory, problem = None, None
        try:
            memory = estimate_memory(student, normalise, pixels, precision=precision, checkpointing=checkpointing)
        except Exception as error:
            if processes.count == 1 and not is_out_of_memory(error):
                raise
            problem = "" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
        _raise_together(processes.gather(problem), processes)
        return processes.broadcast(memory)  # type: ignore[return-value]

    measured = estimate(False)
    on_cpu = processes.device.type == "cpu"
    free = _smallest_memory(processes) + measured.weights + (held if on_cpu else 0)  # what is already loaded
    reserved = cached if on_cpu else 0  # the free memory already excludes the loaded VLM
    budget = _Budget(free, processes.count, reserved, pixels)
    if (
        config.training.gradient_checkpointing == "always"
        or not _plan(config, measured, budget, config.training.micro_batches, False).fits
    ):
        measured = estimate(True)
    plan = choose_memory_plan(config, measured, free, processes.count, reserved=reserved, pixels=pixels)
    if processes.main:
        for line in (plan.message, *plan.notes):
            if line not in _logged:
                logger.info(line)
        _logged.add(plan.message)
    return plan


def _raise_together(problems: Sequence[str | None], processes: Processes) -> None:
    """Raise the same error in all processes if any process has failed, so that no process waits forever for another.

    Args:
        problems: One entry per process: None for success, "" if memory ran out, else the error message.
    """
    failed = [(rank, problem) for rank, problem in enumerate(problems) if problem is not None]
    if not failed:
        return
    rank, problem = failed[0]
    where = str(processes.device) if processes.count == 1 else f"process {rank}"
    if problem:
        raise ClipitError(
            f"cannot estimate the memory that training needs: {problem}",
            where=where,
            fix="run the command in one process, without accelerate launch, to see the whole error",
        )
    raise ConfigError(
        "the device has too little memory for even two tiles",
        where=where,
        fix="choose a smaller backbone, backbone.tuning=frozen, or a device with more memory",
    )


def choose_memory_plan(
    config: RunConfig, estimate: MemoryEstimate, free: int, processes: int = 1, *, reserved: int = 0, pixels: int = 0
) -> MemoryPlan:
    """Choose micro-batches and checkpointing within the keys of a configuration.

    With `accumulation: auto`, the smallest number of micro-batches that fits is chosen. If checkpointing is also
    `auto`, it is used if micro-batches would otherwise have fewer than eight tiles. It is never used where it saves no
    memory. If both keys are explicit, a batch that does not fit only causes a warning.

    Args:
        config: Run configuration, with its arm resolved.
        free: Smallest free memory of any device in bytes, before the student is loaded.
        reserved: Bytes of the device's memory that are not available to the student, such as a tile cache.
        pixels: Edge length of the prefetched tiles; 0 to ignore them.

    Raises:
        ConfigError: The batch does not fit; the message lists the needed memory and remedies.
        ModelError: `gradient_checkpointing: always`, and the backbone does not support it.
    """
    t, budget = config.training, _Budget(free, processes, reserved, pixels)
    frozen = config.backbone.tuning == "frozen"  # a frozen backbone keeps no activations
    supported = estimate.checkpointed is not None and not frozen
    if t.gradient_checkpointing == "always" and not supported and not frozen:
        raise ModelError(
            "the backbone does not support gradient checkpointing",
            where=f"backbone.name: {config.backbone.name}",
            fix="set training.gradient_checkpointing=never and training.accumulation=auto, or use a different backbone",
        )
    modes = {"auto": [False, True], "never": [False], "always": [True]}[t.gradient_checkpointing]
    plans: list[MemoryPlan] = []
    for mode in modes:
        for count in _micro_batches(config, processes):
            plan = _plan(config, estimate, budget, count, mode and supported)
            if plan.fits:
                plans.append(plan)
                break
    if plans:
        few_tiles = _tiles(config, processes, plans[0].micro_batches) < _MIN_TILES
        chosen = min(plans, key=lambda plan: plan.micro_batches) if few_tiles else plans[0]
    else:
        problem, remedies = _too_large(config, estimate, budget, supported)
        if t.gradient_checkpointing == "auto" or t.accumulation == "auto":
            override = (
                "to train anyway, set training.gradient_checkpointing to always or never, and "
                "training.accumulation to a number"
            )
            raise ConfigError(problem, where="training.tiles_per_step", fix=f"{'; or '.join(remedies)}; {override}")
        chosen = _plan(config, estimate, budget, t.accumulation, modes[0] and supported)
        warning = f"warning: {problem}. Training may run out of memory; to avoid this: {'; or '.join(remedies)}"
        chosen = replace(chosen, notes=(warning,))
    if t.gradient_checkpointing == "always" and not chosen.checkpointing:
        why = "with backbone.tuning=frozen, no activations are kept" if frozen else "it saves no memory here"
        note = f"note: training.gradient_checkpointing=always is not used: {why}"
        chosen = replace(chosen, notes=(*chosen.notes, note))
    return chosen


def _micro_batches(config: RunConfig, processes: int) -> Iterator[int]:
    """Yield the numbers of micro-batches that the keys and the loss terms allow, in ascending order."""
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
    """List the conflicts between the loss terms and a number of micro-batches."""
    changed = _with(config, accumulation=micro_batches)
    return [problem for term in all_terms(changed) for problem in term.problems()]


def _tiles(config: RunConfig, processes: int, micro_batches: int) -> int:
    """Return the maximum number of tiles in a micro-batch of a process."""
    return math.ceil(math.ceil(config.training.tiles_per_step / processes) / micro_batches)


def views_per_tile(config: RunConfig) -> int:
    """Return the number of views of each tile that the active terms need."""
    return max((term.views for term in all_terms(config) if term.active), default=1)


def _plan(
    config: RunConfig, estimate: MemoryEstimate, budget: _Budget, micro_batches: int, checkpointing: bool
) -> MemoryPlan:
    """Estimate the memory for a number of micro-batches; checkpointing is used only where it saves memory."""
    tiles = _tiles(config, budget.processes, micro_batches)
    images = tiles * views_per_tile(config)

    def total(checkpointed: bool) -> int:
        return estimate.total(
            images, checkpointing=checkpointed, micro_batches=micro_batches, processes=budget.processes
        )

    checkpointing = checkpointing and total(True) < total(False)
    outside_student = budget.reserved + bytes_ahead(3 * budget.pixels**2 * tiles)
    per_tile = estimate.per_tile(images, checkpointing=checkpointing)
    parts = [f"{counted(images, 'image')} of {_size(per_tile)} each per pass"]
    parts += [f"weights {_size(estimate.weights)}", f"gradients {_size(estimate.gradients)}"]
    parts += [f"optimiser {_size(estimate.optimiser)}"]
    parts += [f"cached and prefetched tiles {_size(outside_student)}"] if outside_student else []
    parts += [f"{counted(micro_batches, 'micro-batch', 'micro-batches')} per step"] if micro_batches > 1 else []
    parts += ["with gradient checkpointing"] if checkpointing else []
    return MemoryPlan(
        checkpointing, micro_batches, total(checkpointing) + outside_student, budget.free, ", ".join(parts)
    )


def _too_large(config: RunConfig, estimate: MemoryEstimate, budget: _Budget, supported: bool) -> tuple[str, list[str]]:
    """Describe a batch that does not fit, with up to three remedies, the least costly first."""
    t, processes = config.training, budget.processes
    checkpointing = t.gradient_checkpointing != "never" and supported
    automatic = _with(config, accumulation="auto")
    half = _with(config, tiles_per_step=max(t.tiles_per_step // 2, processes))
    while half.training.tiles_per_step > processes and not _plan(half, estimate, budget, 1, checkpointing).fits:
        half = _with(half, tiles_per_step=max(half.training.tiles_per_step // 2, processes))
    candidates = [("training.gradient_checkpointing=auto", config, t.micro_batches, True)] if supported else []
    for count in _micro_batches(automatic, processes):
        if _plan(config, estimate, budget, count, checkpointing).fits:
            candidates.append((f"training.accumulation={count}", config, count, checkpointing))
            break
    candidates.append((f"training.tiles_per_step={half.training.tiles_per_step}", half, 1, checkpointing))
    remedies = []
    for remedy, changed, count, recompute in candidates:
        plan = _plan(changed, estimate, budget, count, recompute)
        if plan.fits:
            remedies.append(f"{remedy} (needs {_size(plan.needed)})")
    if config.backbone.tuning != "frozen":
        remedies.append("backbone.tuning=frozen, which keeps no activations")
    remedies += ["a smaller backbone or a lower backbone.pixels", "a device with more memory"]
    smallest = _plan(config, estimate, budget, max(_micro_batches(config, processes)), checkpointing)
    problem = (
        f"a step of {counted(t.tiles_per_step, 'tile')} needs {_size(smallest.needed)} ({smallest.parts}), but only "
        f"{_size(int(_USABLE * budget.free))} can be used: {_USABLE:.0%} of the device's free memory"
    )
    return problem, remedies[:3]


def _with(config: RunConfig, **training: object) -> RunConfig:
    """Copy a configuration with different values in `training`."""
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


def _smallest_memory(processes: Processes) -> int:
    """Return the smallest free memory of any process in bytes; processes on one device share its memory equally."""
    device = processes.device
    name = (socket.gethostname(), str(device))
    devices: Sequence[tuple[tuple[str, str], int]] = processes.gather((name, device_memory(device)))
    names = [name for name, _ in devices]
    shares = [free // names.count(name) for name, free in devices]
    if min(shares) < _UNEQUAL * max(shares) and processes.main:
        logger.info(
            "note: the devices have different amounts of free memory "
            f"({', '.join(_size(share) for share in shares)}); the smallest amount limits the number of tiles"
        )
    return min(shares)


def _size(count: int) -> str:
    """Format bytes in MB or GB, and small numbers in bytes."""
    if count < 1e4:
        return f"{count} bytes"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
