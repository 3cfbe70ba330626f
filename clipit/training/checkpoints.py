"""Save and load resumable checkpoints: trainable weights, optimiser state and counters, in safetensors and JSON."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clipit.artifacts import whole_file
from clipit.errors import ArtifactError, disk_errors


@dataclass
class Progress:
    """Training state other than weights and optimiser."""

    step: int = 0
    best_step: int = 0
    best_score: float | None = None
    validations_without_gain: int = 0
    stopped: bool = False
    seconds: float = 0.0
    scale: dict[str, Any] | None = None


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Return the trainable parameters by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def save_weights(path: Path, model: nn.Module) -> None:
    """Write the trainable parameters atomically."""
    with whole_file(path) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in trainable(model).items()}, temporary)


def load_weights(path: Path, model: nn.Module) -> None:
    """Load trainable parameters.

    Raises:
        ArtifactError: The file is damaged, or belongs to another student.
    """
    with _reading_checkpoint(path):
        saved = load_file(path)
    parameters = trainable(model)
    if {name: value.shape for name, value in saved.items()} != {name: p.shape for name, p in parameters.items()}:
        raise ArtifactError(
            "the checkpoint belongs to another student",
            where=path,
            fix="delete the run's folder, or restore its config",
        )
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(saved[name])


def best_file(folder: Path, step: int) -> Path:
    """Return the path of the best step's weights."""
    return folder / f"best-{step:08d}.safetensors"


def save_checkpoint(folder: Path, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write a checkpoint and delete older ones."""
    final = folder / f"step-{progress.step:08d}"
    partial = folder / f"step-{progress.step:08d}.partial"
    with disk_errors(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_weights(partial / "weights.safetensors", model)
        save_file(dict(_optimizer_tensors(model, optimizer)), partial / "optimizer.safetensors")
        (partial / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    for other in folder.glob("step-*"):
        if other != final:
            shutil.rmtree(other, ignore_errors=True)
    for best in folder.glob("best-*.safetensors"):
        if best != best_file(folder, progress.best_step):
            best.unlink()


def latest_checkpoint(folder: Path) -> Path | None:
    """Find the last complete checkpoint."""
    return max((path for path in folder.glob("step-*") if path.suffix != ".partial"), default=None)


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Restore the latest checkpoint; return a fresh `Progress` if there is none.

    Raises:
        ArtifactError: A file of the checkpoint is damaged or missing, or belongs to another student.
    """
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:
        return Progress()
    with _reading_checkpoint(checkpoint / "progress.json") as path:
        progress = Progress(**json.loads(path.read_text(encoding="utf-8")))
        if checkpoint.name != f"step-{progress.step:08d}":
            raise ValueError("its step is not that of its folder")
    if progress.best_step:  # only needed at the end, but report a missing file now
        with _reading_checkpoint(best_file(folder, progress.best_step)) as path, safe_open(path, framework="pt"):
            pass
    load_weights(checkpoint / "weights.safetensors", model)
    with _reading_checkpoint(checkpoint / "optimizer.safetensors") as path:
        saved = load_file(path)
    for name, parameter in trainable(model).items():
        state = {key.rsplit("/", 1)[1]: value for key, value in saved.items() if key.rsplit("/", 1)[0] == name}
        optimizer.state[parameter] = {
            key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
        }
    return progress


@contextmanager
def _reading_checkpoint(path: Path) -> Iterator[Path]:
    """Convert errors from a damaged or missing checkpoint file to an `ArtifactError`."""
    try:
        yield path
    except PermissionError:
        raise
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        checkpoints = path.parent.parent if path.parent.name.startswith("step-") else path.parent
        raise ArtifactError(
            f"the run's checkpoint is damaged: {error}",
            where=path,
            fix=f"delete the folder {checkpoints} and start again: the training starts from the first step",
        ) from error


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in trainable(model).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            yield f"{name}/{key}", torch.as_tensor(value).detach().cpu().contiguous()
