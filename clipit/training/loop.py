"""Training loop shared by students and VLMs: optimiser, schedule, log, checkpoints and selection of the best step."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipit.distributed import Processes
from clipit.errors import DivergenceError, disk_errors
from clipit.output_files.run_files import RUN_FINGERPRINT, recorded_fingerprint
from clipit.output_files.whole_files import write_text
from clipit.progress import progress as progress_bar
from clipit.reporting.training_curves import read_log
from clipit.training.checkpoints import Progress, best_file, save_checkpoint, save_weights


@dataclass(frozen=True)
class Schedule:
    """Steps, learning rate and intervals of training.

    Attributes:
        title: Label of the progress bar.
        learning_rate: Peak learning rate.
        rate_key: Configuration key of the learning rate, for error messages.
        warmup: Fraction of the steps over which the learning rate rises to its peak.
        log_every: Number of steps between log entries; `validate_every` and `checkpoint_every` are also in steps.
        patience: Number of evaluations without improvement after which training stops; None to train to the end.
    """

    title: str
    steps: int
    learning_rate: float
    rate_key: str
    warmup: float
    log_every: int
    validate_every: int
    checkpoint_every: int
    patience: int | None = None


@dataclass(frozen=True)
class StepParts:
    """Model, optimiser and callbacks that adapt the training loop to a student or a VLM.

    Attributes:
        model: Module whose trainable weights are saved.
        optimizer: Optimiser, possibly inside Accelerate's wrapper.
        saved_optimizer: The same optimiser without the wrapper, for checkpoints.
        compute: Function that runs the forward and backward pass of a step, and returns this process's share of `loss`
            and of its terms.
        clip: Function that clips the gradient and returns its norm.
        after_update: Function called after each update of the weights.
        validate: Function that evaluates on the validation split and returns the log columns and the score of the step
            (higher is better; None if undefined). None to train without validation.
        facts: Function that returns additional log columns.
        status: Function that returns the text of the progress bar.
        seconds: Function that returns the duration of the training so far in seconds.
        scaler: Function that returns the state of the loss scaler, or None without a loss scaler.
        log: Function that passes a log row to the trackers.
        device: Device of the losses.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    saved_optimizer: torch.optim.Optimizer
    compute: Callable[[int], dict[str, Tensor]]
    clip: Callable[[], float]
    after_update: Callable[[], None]
    validate: Callable[[], tuple[dict[str, float | None], float | None]] | None
    facts: Callable[[], dict[str, float]]
    status: Callable[[], str]
    seconds: Callable[[], float]
    scaler: Callable[[], dict[str, Any] | None]
    log: Callable[[dict[str, Any], int], None]
    device: torch.device


def run_steps(schedule: Schedule, parts: StepParts, progress: Progress, folder: Path, processes: Processes) -> None:
    """Train from step `progress.step` to the end, and update `progress` in place.

    Args:
        progress: State of the last checkpoint, or a fresh one.
        folder: Folder for metrics.jsonl and checkpoints/.

    Raises:
        DivergenceError: A loss was infinite or NaN.
    """
    checkpoints = folder / "checkpoints"
    log = _Log(folder / "metrics.jsonl", progress.step, processes, parts.log)
    first, seconds_before = progress.step, progress.seconds
    checked_step, unchecked_loss = first, torch.zeros((), device=parts.device)
    with progress_bar(schedule.title, schedule.steps, shown=processes.main, done=first) as advance:
        while progress.step < schedule.steps and not progress.stopped:
            step = progress.step
            losses = parts.compute(step)
            norm = parts.clip()
            rate = schedule.learning_rate * warmup_cosine(step, schedule.steps, schedule.warmup)
            for group in parts.optimizer.param_groups:
                group["lr"] = rate
            parts.optimizer.step()
            parts.after_update()
            parts.optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            last = progress.step == schedule.steps
            row: dict[str, Any] = {}
            unchecked_loss = unchecked_loss + losses["loss"]
            logs = progress.step % schedule.log_every == 0 or last or step == 0
            validates = parts.validate is not None and (progress.step % schedule.validate_every == 0 or last)
            saves = progress.step % schedule.checkpoint_every == 0 or last
            if logs or validates or saves:  # all of these wait for the device anyway
                _check_finite(unchecked_loss, checked_step, progress.step, processes, schedule.rate_key)
                checked_step, unchecked_loss = progress.step, torch.zeros_like(unchecked_loss)
            if logs:
                row = _global_losses(losses, processes) | {"learning_rate": rate, "gradient_norm": norm} | parts.facts()
            if parts.validate is not None and validates:
                columns, score = parts.validate()
                row |= columns
                _record_score(progress, score, schedule.patience, checkpoints, parts.model, processes)
            if row:
                log.write(progress.step, row)
            if saves or progress.stopped:
                progress.seconds = seconds_before + parts.seconds()
                progress.scale = parts.scaler()
                if processes.main:
                    save_checkpoint(checkpoints, progress, parts.model, parts.saved_optimizer)
                processes.barrier()
            advance(1, parts.status())


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Return the learning-rate factor at a step: linear warm-up over `warmup * steps`, then cosine decay to 0."""
    rise = round(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1)))


def clip_gradients(
    parameters: Iterable[nn.Parameter],
    max_norm: float,
    clip: Callable[[list[nn.Parameter], float], Tensor | None] = nn.utils.clip_grad_norm_,
) -> float:
    """Clip the gradient to `max_norm` (0 for no limit) with `clip`, and return its norm before clipping."""
    norm = clip(list(parameters), max_norm if max_norm > 0 else math.inf)
    return math.nan if norm is None else float(norm)


def make_optimizer(trained: Iterable[nn.Parameter], learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Create AdamW (arXiv 1711.05101) without weight decay on biases, norms and scales."""
    weights = list(trained)
    groups = [
        {"params": [p for p in weights if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]
    on_cpu = all(p.device.type == "cpu" for p in weights)
    # on CPUs, the fused implementation is eight times as fast as torch's default, a loop over the weights
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=learning_rate, fused=True if on_cpu else None
    )


def _check_finite(losses: Float[Tensor, ""], checked_step: int, step: int, processes: Processes, key: str) -> None:
    """Stop all processes together if a loss is infinite or NaN.

    Args:
        losses: Sum of this process's losses since the last check.
        checked_step: Step of the last check.
        key: Configuration key of the learning rate.

    Raises:
        DivergenceError: A loss was infinite or NaN.
    """
    if all(processes.gather(math.isfinite(float(losses)))):
        return
    steps = f"step {step}" if step - checked_step == 1 else f"steps {checked_step + 1} to {step}"
    raise DivergenceError(
        f"training diverged: the loss in {steps} is infinite or not a number",
        where=key,
        fix=f"lower {key}, or check the model's weights and {key.partition('.')[0]}.precision",
    )


def _global_losses(losses: Mapping[str, Tensor], processes: Processes) -> dict[str, float]:
    """Sum the losses over all processes; each process has computed its share of the mean over the global batch."""
    parts = processes.gather({name: float(value) for name, value in losses.items()})
    return {name: sum(part[name] for part in parts) for name in losses}


def _record_score(
    progress: Progress, score: float | None, patience: int | None, folder: Path, model: nn.Module, processes: Processes
) -> None:
    """Record a validation score, and save the weights if it is the best so far."""
    if score is None:  # undefined for these tiles: counts neither as an improvement nor against the patience
        return
    if progress.best_score is None or score > progress.best_score:
        progress.best_score, progress.best_step, progress.validations_without_gain = score, progress.step, 0
        progress.best_sha256 = save_weights(best_file(folder, progress.step), model) if processes.main else ""
        processes.barrier()
    else:
        progress.validations_without_gain += 1
        progress.stopped = patience is not None and progress.validations_without_gain >= patience


class _Log:
    """Writer for metrics.jsonl and the trackers; on resuming, rows after the checkpoint's step are dropped."""

    def __init__(
        self, path: Path, step: int, processes: Processes, tracker: Callable[[dict[str, Any], int], None]
    ) -> None:
        self._path, self._main, self._tracker = path, processes.main, tracker
        fingerprint = recorded_fingerprint(path.parent)
        self._run = {} if fingerprint is None else {RUN_FINGERPRINT: fingerprint}
        if processes.main and path.is_file():
            rows = [row | self._run for row in read_log(path) if row["step"] <= step]
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Append a row to metrics.jsonl (main process only) and pass its defined values to the trackers."""
        if self._main:
            with disk_errors(self._path), self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": step, **row, **self._run}) + "\n")
        self._tracker({key: value for key, value in row.items() if value is not None}, step)
