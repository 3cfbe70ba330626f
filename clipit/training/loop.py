"""The training loop: one optimiser, one sequence of batches, every loss a global sum over a global count."""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from clipit.artifacts import whole_file
from clipit.config.run import RunConfig, TrainingConfig
from clipit.distributed import Processes, get_processes
from clipit.errors import ModelError, disk_errors
from clipit.models.checkpointing import compiled_backbone
from clipit.models.lora import check_gradients
from clipit.models.student import Student
from clipit.progress import progress as progress_bar
from clipit.reporting.curves import read_log
from clipit.tiles.batched import map_batches
from clipit.tiles.pixel_source import PixelSource
from clipit.training.checkpoints import (
    Progress,
    best_file,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from clipit.training.monitor import Monitor
from clipit.training.step import Clock, TrainingData, one_step, slices
from clipit.training.terms.term import Normalise

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validation:
    """Tiles by which the step is selected.

    Attributes:
        source: Pixels of the validation tiles.
        rows: Rows of the scored tiles.
        monitor: Monitored metric; None to keep the last step.
    """

    source: PixelSource
    rows: Int[np.ndarray, "_"]
    monitor: Monitor | None


@dataclass
class Outcome:
    """Outcome of a training; see training.json."""

    steps: int
    chosen_step: int
    score: float | None
    tiles_seen: int
    seconds: float
    tiles_per_second: float
    data_wait: float
    trainable_parameters: int
    stopped_early: bool
    compile_seconds: float | None = None


def train(
    config: RunConfig,
    student: Student,
    normalise: Normalise,
    data: TrainingData,
    validation: Validation,
    folder: Path,
    accelerator: "Accelerator",
) -> Outcome:
    """Train the student in place; it ends with the selected weights.

    An interrupted run resumes from its last checkpoint: batches and augmentation depend only on (seed, step, tile id).

    Args:
        config: Run configuration, with its arm resolved.
        student: Student on this process's device.
        normalise: Function from pixels 0..255 to the backbone's input.
        data: Training tiles and loss terms.
        validation: Validation tiles and the monitored metric.
        folder: The run's folder.
        accelerator: Accelerator for mixed precision and gradient exchange.

    Raises:
        ModelError: The loss became infinite or NaN.
    """
    t, processes = config.training, get_processes()
    optimizer = _optimizer(student, t)
    checkpoints = folder / "checkpoints"
    progress = load_checkpoint(checkpoints, student, optimizer)
    if accelerator.scaler is not None and progress.scale:
        accelerator.scaler.load_state_dict(progress.scale)
    warm_up: float | None = None
    model = accelerator.prepare_model(student)
    optimizer = accelerator.prepare_optimizer(optimizer)
    log = _Log(folder / "metrics.jsonl", progress.step, processes, accelerator)
    clock = Clock()
    first, seconds_before = progress.step, progress.seconds
    checked_step, unchecked_loss = progress.step, torch.zeros((), device=processes.device)
    batches = slices(data, range(progress.step, t.steps), processes, t.micro_batches, clock.reading)
    title = f"training {config.arm or config.name}"
    with (
        compiled_backbone(student.backbone, t.compile),
        progress_bar(title, t.steps, shown=processes.main, done=progress.step) as advance,
    ):
        while progress.step < t.steps and not progress.stopped:
            step = progress.step
            model.train()
            torch.manual_seed(config.seed * 1_000_003 + step * 1009 + processes.rank)  # for dropout, if any
            losses = one_step(config, model, normalise, data, batches, step, processes, accelerator, clock)
            if step == first and t.compile:
                warm_up = _report_warm_up(losses["loss"], clock, processes)
            if step == first and config.backbone.tuning == "lora":
                check_gradients(student)
            norm = _clip_gradients(accelerator, student, t.clip_norm)
            rate = t.learning_rate * warmup_cosine(step, t.steps, t.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            for term in data.terms:
                term.after_update(student)
            optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            last = progress.step == t.steps
            row: dict[str, Any] = {}
            unchecked_loss = unchecked_loss + losses["loss"]
            logs = progress.step % t.log_every == 0 or last or step == 0
            validates = validation.monitor is not None and (progress.step % t.evaluate_every == 0 or last)
            saves = progress.step % t.checkpoint_every == 0 or last
            if logs or validates or saves:  # these synchronise with the device anyway
                _check_finite(unchecked_loss, checked_step, progress.step, processes)
                checked_step, unchecked_loss = progress.step, torch.zeros_like(unchecked_loss)
            if logs:
                row = _global_losses(losses, processes) | {"learning_rate": rate, "gradient_norm": norm}
                row |= {"tiles_per_second": round(clock.speed(), 2), "data_wait": round(clock.data_wait(), 4)}
            if validation.monitor is not None and validates:
                logits = predict_logits(
                    student, normalise, validation.source, validation.rows, config.evaluation.batch_size
                )
                row[f"validation_{t.monitor}"] = score = validation.monitor(logits)
                _note_score(progress, score, t.patience, checkpoints, student, processes)
            if row:
                log.write(progress.step, row)
            if saves or progress.stopped:
                progress.seconds = seconds_before + clock.seconds()
                progress.scale = None if accelerator.scaler is None else accelerator.scaler.state_dict()
                if processes.main:
                    save_checkpoint(checkpoints, progress, student, optimizer.optimizer)
                processes.barrier()
            advance(1, f"{clock.speed():.0f} tiles/s, data wait {clock.data_wait():.0%}")
    clock.reading.report("training", "training.threads", cache=t.cache_tiles == "none", cached=data.source.cached)
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # back to float32
    chosen = progress.best_step or progress.step
    if progress.best_step:
        load_weights(best_file(checkpoints, progress.best_step), student, progress.best_sha256)
    return Outcome(
        steps=progress.step,
        chosen_step=chosen,
        score=progress.best_score,
        tiles_seen=progress.step * t.tiles_per_step,
        seconds=round(progress.seconds, 2),
        tiles_per_second=round(progress.step * t.tiles_per_step / max(progress.seconds, 1e-9), 2),
        data_wait=round(clock.data_wait(), 4),
        trainable_parameters=sum(p.numel() for p in student.parameters() if p.requires_grad),
        stopped_early=progress.stopped,
        compile_seconds=warm_up,
    )


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Return the learning-rate factor at a step: a linear rise over `warmup * steps`, then half a cosine to 0."""
    rise = round(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1)))


def predict_logits(
    student: Student, normalise: Normalise, source: PixelSource, rows: Int[np.ndarray, "n"], batch_size: int
) -> Float32[np.ndarray, "n classes"]:
    """Predict the logits of these tiles, in order; batches are distributed over the processes."""
    student.eval()
    logits: list[Float32[np.ndarray, "_ classes"]] = map_batches(
        source, rows, lambda pixels: student(normalise(pixels)).logits.float().cpu().numpy(), batch_size
    )
    return np.concatenate(logits)


def _report_warm_up(loss: Float[Tensor, ""], clock: Clock, processes: Processes) -> float:
    """Return and log the seconds of the first step, in which the backbone was compiled."""
    float(loss)  # waits for the device
    taken = round(clock.seconds() - clock.waited, 2)
    if processes.main:
        logger.info(f"note: the first step took {taken:.0f} s, because it compiled the backbone (training.compile)")
    return taken


def _optimizer(student: Student, t: TrainingConfig) -> torch.optim.Optimizer:
    trained = [p for p in student.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": t.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},  # biases and norms
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=t.learning_rate)


def _clip_gradients(accelerator: "Accelerator", student: Student, largest_norm: float) -> float:
    trained = [p for p in student.parameters() if p.requires_grad]
    norm = accelerator.clip_grad_norm_(trained, largest_norm if largest_norm > 0 else math.inf)
    return float(norm) if norm is not None else math.nan


def _check_finite(losses: Float[Tensor, ""], checked_step: int, step: int, processes: Processes) -> None:
    """Stop all processes together if a loss is infinite or NaN.

    Args:
        losses: Sum of this process's losses since the last check.
        checked_step: Step of the last check.
        step: Step of this check.
        processes: Processes that share the batches.

    Raises:
        ModelError: A loss was infinite or NaN.
    """
    if all(processes.gather(math.isfinite(float(losses)))):
        return
    steps = f"step {step}" if step - checked_step == 1 else f"steps {checked_step + 1} to {step}"
    raise ModelError(
        f"the training diverged: the loss of {steps} is infinite or not a number",
        where="training.learning_rate",
        fix="lower training.learning_rate, or check the backbone's weights and training.precision",
    )


def _global_losses(losses: Mapping[str, Tensor], processes: Processes) -> dict[str, float]:
    """Sum losses over the processes (each has its share of a global mean)."""
    parts = processes.gather({name: float(value) for name, value in losses.items()})
    return {name: sum(part[name] for part in parts) for name in losses}


def _note_score(
    progress: Progress, score: float | None, patience: int | None, folder: Path, student: Student, processes: Processes
) -> None:
    """Record a validation score, and save the weights if it is the best so far."""
    if score is None:  # undefined for these tiles: neither an improvement nor a failure
        return
    if progress.best_score is None or score > progress.best_score:
        progress.best_score, progress.best_step, progress.validations_without_gain = score, progress.step, 0
        progress.best_sha256 = save_weights(best_file(folder, progress.step), student) if processes.main else ""
        processes.barrier()
    else:
        progress.validations_without_gain += 1
        progress.stopped = patience is not None and progress.validations_without_gain >= patience


class _Log:
    """Writer of metrics.jsonl and the tracker, if any; rows after the checkpoint's step are dropped."""

    def __init__(self, path: Path, step: int, processes: Processes, accelerator: "Accelerator") -> None:
        self._path, self._main, self._accelerator = path, processes.main, accelerator
        if processes.main and path.is_file():
            kept = "".join(json.dumps(row) + "\n" for row in read_log(path) if row["step"] <= step)
            with whole_file(path) as temporary:
                temporary.write_text(kept, encoding="utf-8")

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Append a row to metrics.jsonl (main process only) and pass it to the trackers, less what is undefined."""
        if self._main:
            with disk_errors(self._path), self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": step, **row}) + "\n")
        self._accelerator.log({key: value for key, value in row.items() if value is not None}, step=step)
