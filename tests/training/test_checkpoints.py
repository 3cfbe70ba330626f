"""Saving, verifying and resuming from checkpoints."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from logged_lines import capture_log
from torch import nn

from clipit.errors import ArtifactError
from clipit.training.checkpoints import (
    Progress,
    best_file,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)


def model_and_optimizer(width: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))
    model[0].bias.requires_grad_(False)
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(4, 2)).square().sum().backward()
    optimizer.step()


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    for _ in range(3):
        step(model, optimizer)
    digest = save_weights(best_file(tmp_path, 2), model)
    saved = Progress(step=3, best_score=0.5, best_step=2, best_sha256=digest)
    save_checkpoint(tmp_path, saved, model, optimizer)
    other, other_optimizer = model_and_optimizer()
    assert load_checkpoint(tmp_path, other, other_optimizer) == saved
    for trained, state in ((model, optimizer), (other, other_optimizer)):
        for _ in range(2):
            step(trained, state)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_only_trainable_weights_are_saved(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    save_weights(tmp_path / "w", model_and_optimizer()[0])
    assert set(load_file(tmp_path / "w")) == {"0.weight", "1.weight", "1.bias"}


def test_the_latest_complete_checkpoint_is_used(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    assert latest_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path, model, optimizer) == Progress()
    save_checkpoint(tmp_path, Progress(step=4), model, optimizer)
    (tmp_path / "step-00000008.partial").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000004"
    save_checkpoint(tmp_path, Progress(step=8), model, optimizer)
    assert files(tmp_path) == ["step-00000004", "step-00000008"]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_two_checkpoints_are_kept_with_their_best_weights(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    for number, best in ((3, 2), (5, 4), (7, 6), (9, 6)):
        digest = save_weights(best_file(tmp_path, best), model)
        save_checkpoint(tmp_path, Progress(step=number, best_step=best, best_sha256=digest), model, optimizer)
        if number == 5:
            best_files = [best_file(tmp_path, 2).name, best_file(tmp_path, 4).name]
            assert files(tmp_path) == [*best_files, "step-00000003", "step-00000005"]
    assert files(tmp_path) == [best_file(tmp_path, 6).name, "step-00000007", "step-00000009"]


def test_file_permissions_follow_the_umask(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    old_umask = os.umask(0o027)
    try:
        save_weights(best_file(tmp_path, 2), model)
        save_checkpoint(tmp_path, Progress(step=4), model, optimizer)
    finally:
        os.umask(old_umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.*")}
    assert set(modes.values()) == {0o640}, modes


def test_the_best_weights_are_verified_when_loaded(tmp_path: Path) -> None:
    model, _ = model_and_optimizer()
    path = best_file(tmp_path, 2)
    digest = save_weights(path, model)
    load_weights(path, model, digest)
    flip_a_bit(path)
    with pytest.raises(ArtifactError, match=r"(?s)content has changed.*best-00000002"):
        load_weights(path, model, digest)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def two_checkpoints(folder: Path) -> tuple[Progress, dict[int, list[torch.Tensor]]]:
    """Save checkpoints at steps 4 and 8; return the progress of the first and the weights of both by step."""
    model, optimizer = model_and_optimizer()
    digest = save_weights(best_file(folder, 2), model)
    first, weights = Progress(step=4, best_step=2, best_sha256=digest, best_score=0.5), {}
    for progress in (first, Progress(step=8, best_step=2, best_sha256=digest, best_score=0.5)):
        step(model, optimizer)
        save_checkpoint(folder, progress, model, optimizer)
        weights[progress.step] = [value.detach().clone() for value in model.parameters()]
    return first, weights


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "progress.json"])
@pytest.mark.parametrize("damage", ["flip", "delete"])
def test_training_resumes_from_the_previous_checkpoint_if_the_latest_is_damaged(
    tmp_path: Path, name: str, damage: str
) -> None:
    first, weights = two_checkpoints(tmp_path)
    path = tmp_path / "step-00000008" / name
    if damage == "delete":
        path.unlink()
    else:
        flip_a_bit(path)
    model, optimizer = model_and_optimizer()
    log_lines = capture_log()
    assert load_checkpoint(tmp_path, model, optimizer) == first
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights[4], strict=True))
    assert any("damaged" in line and "step-00000008" in line for line in log_lines)
    assert any("resumes from the previous checkpoint, step 4" in line for line in log_lines)
    # The next checkpoint replaces the damaged folder.
    save_checkpoint(tmp_path, Progress(step=6), model, optimizer)
    assert files(tmp_path) == ["best-00000002.safetensors", "step-00000004", "step-00000006"]


def test_the_error_for_two_damaged_checkpoints_names_the_latest(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    for number in (4, 8):
        flip_a_bit(tmp_path / f"step-0000000{number}" / "weights.safetensors")
    with pytest.raises(ArtifactError, match="step-00000008"):
        load_checkpoint(tmp_path, *model_and_optimizer())


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "8"},
        {"step": True},
        {"step": -8},
        {"best_step": 9},
        {"best_step": 0},
        {"best_score": "high"},
        {"best_score": float("nan")},
        {"best_sha256": None},
        {"validations_without_gain": 0.5},
        {"stopped": 0},
        {"seconds": None},
        {"scale": []},
        {"files": {}},
        {"files": {"../../secret": "0"}},
        {"other": 1},
        {"seconds": 7.5},
        {"validations_without_gain": 3},
    ],
)
def test_a_checkpoint_with_invalid_progress_is_treated_as_damaged(tmp_path: Path, changes: dict[str, object]) -> None:
    first, _ = two_checkpoints(tmp_path)
    path = tmp_path / "step-00000008" / "progress.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert load_checkpoint(tmp_path, *model_and_optimizer()) == first


def test_files_are_flushed_to_disk_before_they_are_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power failure, either the old checkpoint or the complete new one exists."""
    operations: list[tuple[str, int]] = []  # "flush" or "rename", and the inode of the file or folder
    fsync, replace, rename = os.fsync, Path.replace, Path.rename

    def flush(handle: int) -> None:
        fsync(handle)
        operations.append(("flush", os.fstat(handle).st_ino))

    def move(self: Path, target: Path, how: Callable[[Path, Path], Path]) -> Path:
        operations.append(("rename", self.stat().st_ino))
        return how(self, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", lambda self, target: move(self, target, replace))
    monkeypatch.setattr(Path, "rename", lambda self, target: move(self, target, rename))
    model, optimizer = model_and_optimizer()
    step(model, optimizer)
    digest = save_weights(best_file(tmp_path, 2), model)
    save_checkpoint(tmp_path, Progress(step=4, best_step=2, best_sha256=digest), model, optimizer)
    renamed = [inode for kind, inode in operations if kind == "rename"]
    checkpoint = tmp_path / "step-00000004"
    assert len(renamed) == 4 and renamed[-1] == checkpoint.stat().st_ino  # three files and the folder
    for inode in renamed:
        assert operations.index(("flush", inode)) < operations.index(("rename", inode))
    progress = (checkpoint / "progress.json").stat().st_ino
    assert operations.index(("flush", progress)) < operations.index(("rename", renamed[-1]))
    assert operations[-1] == ("flush", tmp_path.stat().st_ino), "the rename itself is flushed"


def test_weights_of_a_different_student_are_an_error(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", model_and_optimizer(3)[0])
    with pytest.raises(ArtifactError, match=r"a different student.*\n +\S+: .* in the file, .* now"):
        load_weights(tmp_path / "w", model_and_optimizer(4)[0])


def test_checkpoints_of_a_different_run_of_the_same_student_are_an_error(tmp_path: Path) -> None:
    for run in ("one", "other"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "run.json").write_text(json.dumps({"fingerprint": run}))
        two_checkpoints(tmp_path / run / "checkpoints")
    copied = tmp_path / "one" / "checkpoints"
    assert load_checkpoint(copied, *model_and_optimizer()).step == 8
    shutil.rmtree(copied)
    shutil.copytree(tmp_path / "other" / "checkpoints", copied)
    with pytest.raises(ArtifactError, match=r"(?s)a different run: its fingerprint is other.*step-00000008"):
        load_checkpoint(copied, *model_and_optimizer())
    (tmp_path / "one" / "run.json").unlink()
    assert load_checkpoint(copied, *model_and_optimizer()).step == 8, "checkpoints without a recorded run are accepted"


def test_a_failure_while_saving_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = model_and_optimizer()
    save_checkpoint(tmp_path, Progress(step=4), model, optimizer)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clipit.training.checkpoints.save_file", full)
    with pytest.raises(ArtifactError, match="No space left"):
        save_checkpoint(tmp_path, Progress(step=8), model, optimizer)
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000004"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("step-00000004/weights.safetensors", 20),
        ("step-00000004/optimizer.safetensors", 400),
        ("step-00000004/optimizer.safetensors", None),
        ("step-00000004/progress.json", 0),
        ("step-00000004/progress.json", "{}"),
        ("step-00000004/progress.json", '{"steps": 4}'),
        ("step-00000004/progress.json", "[" * 100_000),
        ("best-00000002.safetensors", None),
        ("best-00000002.safetensors", 100),
    ],
)
def test_the_error_for_a_damaged_checkpoint_names_the_file(
    tmp_path: Path, file: str, content: int | str | None
) -> None:
    model, optimizer = model_and_optimizer()
    step(model, optimizer)
    digest = save_weights(best_file(tmp_path, 2), model)
    save_checkpoint(tmp_path, Progress(step=4, best_step=2, best_sha256=digest), model, optimizer)
    path = tmp_path / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else path.read_bytes()[:content])
    with pytest.raises(ArtifactError, match=rf"(?s)damaged.*{path.name}.*delete the folder {tmp_path} "):
        load_checkpoint(tmp_path, *model_and_optimizer())
