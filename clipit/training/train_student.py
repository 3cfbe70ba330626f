"""Train a student: batches, losses and validation for the training loop."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from clipit.config.run import RunConfig
from clipit.distributed import Processes, get_processes
from clipit.models.checkpointing import compiled_backbone
from clipit.models.lora import check_gradients
from clipit.models.student import Student
from clipit.models.trunks import cpu_parts
from clipit.tiles.batched import map_batches
from clipit.tiles.pixel_source import PixelSource
from clipit.training.checkpoints import best_file, load_checkpoint, load_weights
from clipit.training.loop import Schedule, StepParts, clip_gradients, make_optimizer, run_steps
from clipit.training.monitor import Monitor
from clipit.training.step import Clock, TrainingData, local_batches, one_step
from clipit.training.terms.term import Normalise

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validation:
    """Validation tiles that select the best step.

    Attributes:
        source: Pixels of the validation tiles.
        rows: Rows of `source` to predict, in the order that `monitor` expects.
        monitor: Monitored metric; None to keep the last step.
    """

    source: PixelSource
    rows: Int[np.ndarray, "_"]
    monitor: Monitor | None


@dataclass
class TrainingOutcome:
    """Outcome of training, as recorded in training.json.

    Attributes:
        chosen_step: Step whose weights the student has after training.
        score: Monitored validation score at this step; None without validation.
        tiles_seen: Number of tiles over all steps, counting repeats.
        seconds: Duration of training in seconds, including the time before interruptions.
        tiles_per_second: Mean throughput, over all processes.
        data_wait: Fraction of the time spent waiting for tiles.
        stopped_early: Whether training stopped before its last step (`training.patience`).
        compile_seconds: Duration of the first step if it compiled the backbone; None otherwise.
    """

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


def train_student(
    config: RunConfig,
    student: Student,
    normalise: Normalise,
    data: TrainingData,
    validation: Validation,
    folder: Path,
    accelerator: "Accelerator",
) -> TrainingOutcome:
    """Train the student in place, and load the weights of the selected step.

    An interrupted run resumes from its last checkpoint: batches and augmentation depend only on (seed, step, tile id).

    Args:
        config: Run configuration, with its arm resolved.
        normalise: Function from pixels 0..255 to the backbone's input.
        folder: Folder for metrics.jsonl and checkpoints/.
        accelerator: Accelerator for mixed precision and gradient synchronisation.

    Raises:
        ModelError: The loss became infinite or NaN, or a LoRA layer received no gradient.
    """
    t, processes = config.training, get_processes()
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = make_optimizer(trained, t.learning_rate, t.weight_decay)
    checkpoints = folder / "checkpoints"
    progress = load_checkpoint(checkpoints, student, optimizer)
    if accelerator.scaler is not None and progress.scale:
        accelerator.scaler.load_state_dict(progress.scale)
    warm_up: list[float] = []
    model = accelerator.prepare_model(student)
    wrapped = accelerator.prepare_optimizer(optimizer)
    clock = Clock()
    first = progress.step
    batches = local_batches(data, range(first, t.steps), processes, t.micro_batches, clock.reading)

    def compute(step: int) -> dict[str, Tensor]:
        model.train()
        torch.manual_seed(config.seed * 1_000_003 + step * 1009 + processes.rank)  # for dropout, if any
        losses = one_step(config, model, normalise, data, batches, step, processes, accelerator, clock)
        if step == first and t.compile:
            warm_up.append(_report_warm_up(losses["loss"], clock, processes))
        if step == first and config.backbone.tuning == "lora":
            check_gradients(student)
        return losses

    def after_update() -> None:
        for term in data.terms:
            term.after_update(student)

    def validate(monitor: Monitor) -> tuple[dict[str, float | None], float | None]:
        batch_size = config.evaluation.batch_size
        score = monitor(student_logits(student, normalise, validation.source, validation.rows, batch_size))
        return {f"validation_{t.monitor}": score}, score

    parts = StepParts(
        model=student,
        optimizer=wrapped,
        saved_optimizer=wrapped.optimizer,
        compute=compute,
        clip=lambda: clip_gradients(trained, t.clip_norm, accelerator.clip_grad_norm_),
        after_update=after_update,
        validate=None if validation.monitor is None else partial(validate, validation.monitor),
        facts=lambda: {"tiles_per_second": round(clock.speed(), 2), "data_wait": round(clock.data_wait(), 4)},
        status=lambda: f"{clock.speed():.0f} tiles/s, data wait {clock.data_wait():.0%}",
        seconds=clock.seconds,
        scaler=lambda: None if accelerator.scaler is None else accelerator.scaler.state_dict(),
        log=lambda row, step: accelerator.log(row, step=step),
        device=processes.device,
    )
    schedule = Schedule(
        title=f"training {config.arm or config.name}",
        steps=t.steps,
        learning_rate=t.learning_rate,
        rate_key="training.learning_rate",
        warmup=t.warmup,
        log_every=t.log_every,
        validate_every=t.evaluate_every,
        checkpoint_every=t.checkpoint_every,
        patience=t.patience,
    )
    with compiled_backbone(student.backbone, t.compile):
        run_steps(schedule, parts, progress, folder, processes)
    clock.reading.report("training", "training.threads", cache=t.cache_tiles == "none", cached=data.source.cached)
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # so that the student computes in float32 again
    chosen = progress.best_step or progress.step
    if progress.best_step:
        load_weights(best_file(checkpoints, progress.best_step), student, progress.best_sha256)
    return TrainingOutcome(
        steps=progress.step,
        chosen_step=chosen,
        score=progress.best_score,
        tiles_seen=progress.step * t.tiles_per_step,
        seconds=round(progress.seconds, 2),
        tiles_per_second=round(progress.step * t.tiles_per_step / max(progress.seconds, 1e-9), 2),
        data_wait=round(clock.data_wait(), 4),
        trainable_parameters=sum(p.numel() for p in trained),
        stopped_early=progress.stopped,
        compile_seconds=warm_up[0] if warm_up else None,
    )


def student_logits(
    student: Student, normalise: Normalise, source: PixelSource, rows: Int[np.ndarray, "n"], batch_size: int
) -> Float32[np.ndarray, "n classes"]:
    """Predict the logits of these tiles, in order, with batches distributed over the processes."""
    student.eval()

    def compute(pixels: Tensor) -> Float32[np.ndarray, "_ classes"]:
        return torch.cat([student(part).logits for part in cpu_parts(normalise(pixels))]).float().cpu().numpy()

    return np.concatenate(map_batches(source, rows, compute, batch_size))


def _report_warm_up(loss: Float[Tensor, ""], clock: Clock, processes: Processes) -> float:
    """Log and return the duration in seconds of the first step, which compiled the backbone."""
    float(loss)  # waits for the device
    seconds = round(clock.seconds() - clock.waited, 2)
    if processes.main:
        logger.info(f"note: the first step took {seconds:.0f} s, because it compiled the backbone (training.compile)")
    return seconds
