"""The training loop: one optimiser, one list of batches, every loss a global sum over a global count."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from clipit.artifacts import whole_file
from clipit.config.run import RunConfig, TrainingConfig
from clipit.distributed import Processes
from clipit.errors import ModelError, explain
from clipit.models.lora import check_gradients
from clipit.models.student import Student
from clipit.progress import progress as progress_bar
from clipit.tiles.pixel_source import PixelSource
from clipit.training.bag_term import hold_temperature
from clipit.training.checkpoints import (
    Progress,
    best_file,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from clipit.training.step import Clock, Lesson, Normalise, one_step, slices

if TYPE_CHECKING:
    from accelerate import Accelerator

Score = Callable[[Float32[np.ndarray, "n classes"]], float | None]
"""Logits of the validation tiles to the monitored metric; larger is better, None when undefined."""


@dataclass(frozen=True)
class TrainingData:
    """All that the loop reads."""

    lesson: Lesson
    validation: PixelSource
    validation_rows: Int[np.ndarray, "_"]
    score: Score | None


@dataclass
class Outcome:
    """How a training ended."""

    steps: int
    chosen_step: int
    score: float | None
    tiles_seen: int
    seconds: float
    tiles_per_second: float
    waiting: float
    trainable_parameters: int
    stopped_early: bool


def train(
    config: RunConfig,
    student: Student,
    normalise: Normalise,
    data: TrainingData,
    folder: Path,
    processes: Processes,
    accelerator: "Accelerator",
) -> Outcome:
    """Train the student; it holds the chosen weights afterwards.

    A killed run goes on from its last checkpoint: batches and augmentation depend on (seed, step, tile id) only.

    Args:
        config: Resolved configuration.
        student: On the device of `here`.
        normalise: Of the backbone, pixels 0..255 to what it expects.
        data: Tiles, labels, targets and the batch plan.
        folder: The run's folder.
        processes: The processes.
        accelerator: Mixed precision and gradient exchange.

    Raises:
        ModelError: The loss stopped being a number.
    """
    t = config.training
    optimizer = _optimizer(student, t)
    checkpoints = folder / "checkpoints"
    progress = load_checkpoint(checkpoints, student, optimizer)
    if accelerator.scaler is not None and progress.scale:
        accelerator.scaler.load_state_dict(progress.scale)
    model = accelerator.prepare_model(student)
    optimizer = accelerator.prepare_optimizer(optimizer)
    log = _Log(folder / "metrics.jsonl", progress.step, processes, accelerator)
    clock = Clock()
    first, seconds_before = progress.step, progress.seconds
    since, unseen = progress.step, torch.zeros((), device=processes.device)  # losses since somebody looked
    batches = slices(data.lesson, range(progress.step, t.steps), processes, t.accumulation)
    with progress_bar(
        f"training {config.arm or config.name}", t.steps, shown=processes.main, done=progress.step
    ) as advance:
        while progress.step < t.steps and not progress.stopped:
            step = progress.step
            model.train()
            torch.manual_seed(config.seed * 1_000_003 + step * 1009 + processes.rank)  # dropout, if any
            terms = one_step(config, model, normalise, data.lesson, batches, step, processes, accelerator, clock)
            if step == first and config.backbone.tuning == "lora":
                check_gradients(student)
            norm = _clip(accelerator, student, t.clip_norm)
            rate = t.learning_rate * warmup_cosine(step, t.steps, t.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            hold_temperature(student)
            optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            last = progress.step == t.steps
            row: dict[str, Any] = {}
            unseen = unseen + terms["loss"]
            logs = progress.step % t.log_every == 0 or last or step == 0
            looks = data.score is not None and (progress.step % t.evaluate_every == 0 or last)
            saves = progress.step % t.checkpoint_every == 0 or last
            if logs or looks or saves:  # these wait for the device anyway
                _check_finite(unseen, since, progress.step, processes)
                since, unseen = progress.step, torch.zeros_like(unseen)
            if logs:
                row = _global_terms(terms, processes) | {"learning_rate": rate, "gradient_norm": norm}
                row |= {"tiles_per_second": round(clock.speed(), 2), "waiting": round(clock.waiting(), 4)}
            if data.score is not None and looks:
                logits = predict_logits(
                    student, normalise, data.validation, data.validation_rows, processes, config.evaluation.batch_size
                )
                row[f"validation_{t.monitor}"] = score = data.score(logits)
                _look(progress, score, t, checkpoints, student, processes)
            if row:
                log.write(progress.step, row)
            if saves or progress.stopped:
                progress.seconds = seconds_before + clock.seconds()
                progress.scale = None if accelerator.scaler is None else accelerator.scaler.state_dict()
                if processes.main:
                    save_checkpoint(checkpoints, progress, student, optimizer.optimizer)
                processes.barrier()
            advance(1, f"{clock.speed():.0f} tiles/s, waiting {clock.waiting():.0%}")
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # the student computes in float32 again
    chosen = progress.best_step or progress.step
    if progress.best_step:
        load_weights(best_file(checkpoints, progress.best_step), student)
    return Outcome(
        steps=progress.step,
        chosen_step=chosen,
        score=progress.best_score,
        tiles_seen=progress.step * t.tiles_per_step,
        seconds=round(progress.seconds, 2),
        tiles_per_second=round(progress.step * t.tiles_per_step / max(progress.seconds, 1e-9), 2),
        waiting=round(clock.waiting(), 4),
        trainable_parameters=sum(p.numel() for p in student.parameters() if p.requires_grad),
        stopped_early=progress.stopped,
    )


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Share of the learning rate at a step: a linear rise over `warmup * steps`, then half a cosine to 0."""
    rise = round(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1)))


@torch.inference_mode()
def predict_logits(
    student: Student,
    normalise: Normalise,
    source: PixelSource,
    rows: Int[np.ndarray, "n"],
    processes: Processes,
    batch_size: int,
) -> Float32[np.ndarray, "n classes"]:
    """Logits of these rows of a source, in their order; the processes share the batches."""
    student.eval()
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    own = {}
    for batch, pixels in source.ahead(processes.share(batches)):
        inputs = normalise(torch.from_numpy(pixels).to(processes.device))
        own[int(batch[0])] = student(inputs).logits.float().cpu().numpy()
    merged: dict[int, Float32[np.ndarray, "_ classes"]] = {}
    for part in processes.gather(own):
        merged |= part
    return np.concatenate([merged[int(batch[0])] for batch in batches])


def _optimizer(student: Student, t: TrainingConfig) -> torch.optim.Optimizer:
    trained = [p for p in student.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": t.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},  # biases and norms
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=t.learning_rate)


def _clip(accelerator: "Accelerator", student: Student, most: float) -> float:
    trained = [p for p in student.parameters() if p.requires_grad]
    norm = accelerator.clip_grad_norm_(trained, most if most > 0 else math.inf)
    return float(norm) if norm is not None else math.nan


def _check_finite(losses: Float[Tensor, ""], before: int, step: int, processes: Processes) -> None:
    """Refuse to go on from a loss that is no number; all processes stop together.

    Args:
        losses: Sum over the steps since the last look, of this process.
        before: The step of that look.
        step: Now.
        processes: The processes.

    Raises:
        ModelError: A loss was infinite or not a number.
    """
    if all(processes.gather(math.isfinite(float(losses)))):
        return
    steps = f"step {step}" if step - before == 1 else f"steps {before + 1} to {step}"
    raise ModelError(
        explain(
            f"the training diverged: the loss of {steps} is infinite or not a number",
            where="training.learning_rate",
            fix="lower training.learning_rate, or look at the backbone's weights and at training.precision",
        )
    )


def _global_terms(terms: Mapping[str, Tensor], processes: Processes) -> dict[str, float]:
    """Loss terms summed over the processes (each is this process's share of a global mean)."""
    parts = processes.gather({name: float(value) for name, value in terms.items()})
    return {name: sum(part[name] for part in parts) for name in terms}


def _look(
    progress: Progress, score: float | None, t: TrainingConfig, folder: Path, student: Student, processes: Processes
) -> None:
    """Take note of a validation score; keep the weights when it is the best so far."""
    if score is None:  # undefined for these tiles: neither a gain nor a failure
        return
    if progress.best_score is None or score > progress.best_score:
        progress.best_score, progress.best_step, progress.looks_without_gain = score, progress.step, 0
        if processes.main:
            save_weights(best_file(folder, progress.step), student)
        processes.barrier()
    else:
        progress.looks_without_gain += 1
        progress.stopped = t.patience is not None and progress.looks_without_gain >= t.patience


class _Log:
    """metrics.jsonl, and the tracker if there is one; rows after the resumed step are dropped."""

    def __init__(self, path: Path, step: int, processes: Processes, accelerator: "Accelerator") -> None:
        self._path, self._here, self._accelerator = path, processes, accelerator
        if processes.main and path.is_file():
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
            kept = "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step)
            with whole_file(path) as temporary:
                temporary.write_text(kept, encoding="utf-8")

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Add a row."""
        if self._here.main:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": step, **row}) + "\n")
        self._accelerator.log({key: value for key, value in row.items() if value is not None}, step=step)
