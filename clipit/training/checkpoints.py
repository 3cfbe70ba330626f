"""Save and load resumable checkpoints: trainable weights, optimiser state and counters, in safetensors and JSON.

A checkpoint is a folder `step-<number>`, which gets this name once it is complete. `progress.json` records the SHA-256
of every file. The weights and the optimiser state repeat the fingerprint of the run in their metadata. The previous
checkpoint is kept, in case the newest one is damaged.
"""

import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clipit.errors import ArtifactError, disk_errors
from clipit.output_files.artifacts import file_sha256, whole_file, with_checksum, without_checksum
from clipit.output_files.differences import difference_lines, list_differences
from clipit.output_files.run_files import RUN_FINGERPRINT, check_same_run, recorded_fingerprint

logger = logging.getLogger(__name__)

_WEIGHTS, _OPTIMIZER, _PROGRESS = "weights.safetensors", "optimizer.safetensors", "progress.json"


@dataclass
class Progress:
    """Training state other than weights and optimiser.

    Attributes:
        step: Number of completed steps.
        best_step: Step with the best validation score; 0 if there is none.
        best_score: Validation score of that step; None if there is none.
        best_sha256: SHA-256 of the file with that step's weights; "" if there is none, and outside the main process.
        validations_without_gain: Number of evaluations on the validation split since the best step.
        stopped: Whether training stopped early.
        seconds: Duration of the training so far in seconds.
        scale: State of the loss scaler in fp16; None otherwise.
        files: SHA-256 of the checkpoint's files, by name.
    """

    step: int = 0
    best_step: int = 0
    best_score: float | None = None
    best_sha256: str = ""
    validations_without_gain: int = 0
    stopped: bool = False
    seconds: float = 0.0
    scale: dict[str, Any] | None = None
    files: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def from_json(values: object) -> "Progress":
        """Validate the content of a `progress.json`.

        Raises:
            ValueError: A field is missing, unknown or changed, or has an invalid value.
        """
        if not isinstance(values, dict) or values.keys() - {"checksum"} != {each.name for each in fields(Progress)}:
            raise ValueError("fields are missing or unknown")
        values = without_checksum(values)
        counts = [values[name] for name in ("step", "best_step", "validations_without_gain")]
        numbers = [values["seconds"], 0.0 if values["best_score"] is None else values["best_score"]]
        scale, files = values["scale"], values["files"]
        valid = {
            "step, best_step or validations_without_gain": all(type(n) is int and n >= 0 for n in counts),
            "seconds or best_score": all(type(n) in (int, float) and math.isfinite(n) for n in numbers),
            "stopped": isinstance(values["stopped"], bool),
            "best_sha256": isinstance(values["best_sha256"], str),
            "scale": scale is None or isinstance(scale, dict),
            "files": isinstance(files, dict) and files.keys() == {_WEIGHTS, _OPTIMIZER},
        }
        invalid = [name for name, is_valid in valid.items() if not is_valid]
        if invalid:
            raise ValueError(f"invalid value for {invalid[0]}")
        if values["best_step"] > values["step"] or bool(values["best_step"]) != bool(values["best_sha256"]):
            raise ValueError("invalid value for best_step")
        return Progress(**values)


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Return the trainable parameters by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def save_weights(path: Path, model: nn.Module) -> str:
    """Write the trainable parameters atomically into a run's `checkpoints` folder; return the SHA-256 of the file."""
    _save(path, trainable(model), path.parent.parent)
    return file_sha256(path)


def load_weights(path: Path, model: nn.Module, sha256: str = "") -> None:
    """Load trainable parameters.

    Args:
        sha256: Expected SHA-256 of the file; "" if the file has already been verified.

    Raises:
        ArtifactError: The file is damaged, or belongs to a different student.
    """
    with _reading_checkpoint(path):
        if sha256:
            _verify(path, sha256)
        saved = load_file(path)
    parameters = trainable(model)
    saved_shapes, shapes = (
        {name: list(value.shape) for name, value in tensors.items()} for tensors in (saved, parameters)
    )
    if saved_shapes != shapes:
        lines = difference_lines(list_differences(saved_shapes, shapes, "in the file"))
        raise ArtifactError(
            f"the checkpoint belongs to a different student; shapes of trainable weights that differ:\n    {lines}",
            where=path,
            fix="delete the run's folder, or restore its configuration",
        )
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(saved[name])


def best_file(folder: Path, step: int) -> Path:
    """Return the path of the best step's weights."""
    return folder / f"best-{step:08d}.safetensors"


def save_checkpoint(folder: Path, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write a checkpoint, keep the previous one, delete all others, and set `progress.files`."""
    final = _folder(folder, progress.step)
    partial = final.with_name(f"{final.name}.partial")
    with disk_errors(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        tensors = {_WEIGHTS: trainable(model), _OPTIMIZER: dict(_optimizer_tensors(model, optimizer))}
        for name, values in tensors.items():
            _save(partial / name, values, folder.parent)
        progress.files = {name: file_sha256(partial / name) for name in tensors}
        (partial / _PROGRESS).write_text(json.dumps(with_checksum(asdict(progress))), encoding="utf-8")
        _flush(partial / _PROGRESS)
        _flush(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _flush(folder)
    _delete_old(folder, progress)


def delete_old_checkpoints(folder: Path) -> None:
    """Delete checkpoints that the latest one has replaced, which a killed process may have deleted only in part."""
    latest = latest_checkpoint(folder)
    if latest is not None:
        with suppress(ArtifactError):  # reported when the checkpoint is loaded
            _delete_old(folder, _read_progress(latest))


def _delete_old(folder: Path, progress: Progress) -> None:
    """Delete all checkpoints except this one and the previous one, and all best weights that neither refers to."""
    steps = _steps(folder)
    kept = [step for step in steps if step <= progress.step][:2]
    best = {progress.best_step}
    for step in kept[1:]:
        try:
            best.add(_read_progress(_folder(folder, step)).best_step)
        except ArtifactError:  # a damaged checkpoint is useless as a fallback
            kept.remove(step)
    for path in folder.glob("step-*"):
        if path not in [_folder(folder, step) for step in kept]:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob("best-*.safetensors"):
        if path not in [best_file(folder, step) for step in best]:
            path.unlink()


def latest_checkpoint(folder: Path) -> Path | None:
    """Find the last complete checkpoint."""
    return next((_folder(folder, step) for step in _steps(folder)), None)


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Restore the latest intact checkpoint; return a fresh `Progress` if there is no checkpoint.

    Raises:
        ArtifactError: No checkpoint is intact, or the checkpoint belongs to a different run or student.
    """
    damage: ArtifactError | None = None
    for step in _steps(folder):
        checkpoint = _folder(folder, step)
        try:
            progress = _verified(checkpoint)
        except ArtifactError as error:
            logger.warning(" ".join(str(error).split("  fix:")[0].split()))
            damage = damage or error
            continue
        if damage is not None:
            logger.info(f"note: training resumes from the previous checkpoint, step {step}")
        load_weights(checkpoint / _WEIGHTS, model)
        with _reading_checkpoint(checkpoint / _OPTIMIZER) as path:
            saved = load_file(path)
        for name, parameter in trainable(model).items():
            state = {key.rsplit("/", 1)[1]: value for key, value in saved.items() if key.rsplit("/", 1)[0] == name}
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
            }
        return progress
    if damage is not None:
        raise damage
    return Progress()


def _steps(folder: Path) -> list[int]:
    """List the steps of the complete checkpoints, the latest first."""
    names = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _read_progress(checkpoint: Path) -> Progress:
    with _reading_checkpoint(checkpoint / _PROGRESS) as path:
        progress = Progress.from_json(json.loads(path.read_text(encoding="utf-8")))
        if checkpoint.name != f"step-{progress.step:08d}":
            raise ValueError("the recorded step differs from the step in the folder name")
    return progress


def _verified(checkpoint: Path) -> Progress:
    """Read the progress of a checkpoint and verify all of its files, including the best weights."""
    progress = _read_progress(checkpoint)
    files = {checkpoint / name: digest for name, digest in progress.files.items()}
    if progress.best_step:
        files[best_file(checkpoint.parent, progress.best_step)] = progress.best_sha256
    for path, digest in files.items():
        with _reading_checkpoint(path):
            _verify(path, digest)
            with safe_open(path, "pt") as file:
                recorded = (file.metadata() or {}).get(RUN_FINGERPRINT)
        check_same_run(path, recorded, checkpoint.parent.parent, _restart(checkpoint.parent))
    return progress


def _verify(path: Path, sha256: str) -> None:
    if file_sha256(path) != sha256:
        raise ValueError("its content has changed since it was written")


@contextmanager
def _reading_checkpoint(path: Path) -> Iterator[Path]:
    """Convert errors from a damaged or missing checkpoint file to an `ArtifactError`."""
    try:
        yield path
    except PermissionError:
        raise
    except (OSError, ValueError, TypeError, RecursionError, SafetensorError) as error:
        checkpoints = path.parent.parent if path.parent.name.startswith("step-") else path.parent
        raise ArtifactError(
            f"the run's checkpoint is damaged: {error}",
            where=path,
            fix=_restart(checkpoints),
        ) from error


def _restart(checkpoints: Path) -> str:
    return f"delete the folder {checkpoints} and start again; training then restarts from the first step"


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in trainable(model).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            yield f"{name}/{key}", torch.as_tensor(value)


def _save(path: Path, tensors: Mapping[str, Tensor], run: Path) -> None:
    """Write tensors and the fingerprint of the run atomically, and wait until they are on disk."""
    fingerprint = recorded_fingerprint(run)
    metadata = None if fingerprint is None else {RUN_FINGERPRINT: fingerprint}
    with whole_file(path) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary, metadata)
        _flush(temporary)
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Wait until a file or folder is on disk, so that it survives a power failure."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:
        if not path.is_dir():  # some file systems cannot flush folders
            raise
