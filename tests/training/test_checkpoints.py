"""Checkpoints: whole, of this student, and the newest one."""

from pathlib import Path

import pytest
import torch
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


def test_going_on_equals_never_stopping(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    for _ in range(3):
        step(model, optimizer)
    save_weights(best_file(tmp_path, 2), model)
    save_checkpoint(tmp_path, Progress(step=3, best_score=0.5, best_step=2), model, optimizer)
    other, other_optimizer = model_and_optimizer()
    progress = load_checkpoint(tmp_path, other, other_optimizer)
    assert progress == Progress(step=3, best_score=0.5, best_step=2)
    for one, state in ((model, optimizer), (other, other_optimizer)):
        for _ in range(2):
            step(one, state)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_only_trainable_weights_are_kept(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    save_weights(tmp_path / "w", model_and_optimizer()[0])
    assert set(load_file(tmp_path / "w")) == {"0.weight", "1.weight", "1.bias"}


def test_the_newest_whole_one_counts(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    assert latest_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path, model, optimizer) == Progress()
    save_checkpoint(tmp_path, Progress(step=4), model, optimizer)
    (tmp_path / "step-00000008.partial").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000004"
    save_checkpoint(tmp_path, Progress(step=8), model, optimizer)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000008"]


def test_best_weights_outlive_later_checkpoints(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    for number in (2, 4):
        save_weights(best_file(tmp_path, number), model)
    save_checkpoint(tmp_path, Progress(step=6, best_step=4), model, optimizer)
    save_checkpoint(tmp_path, Progress(step=8, best_step=4), model, optimizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == [best_file(tmp_path, 4).name, "step-00000008"]


def test_weights_of_another_student(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", model_and_optimizer(3)[0])
    with pytest.raises(ArtifactError, match="another student"):
        load_weights(tmp_path / "w", model_and_optimizer(4)[0])


def test_a_kill_while_saving_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        ("best-00000002.safetensors", None),
        ("best-00000002.safetensors", 100),
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, file: str, content: int | str | None) -> None:
    model, optimizer = model_and_optimizer()
    step(model, optimizer)
    save_weights(best_file(tmp_path, 2), model)
    save_checkpoint(tmp_path, Progress(step=4, best_step=2), model, optimizer)
    path = tmp_path / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else path.read_bytes()[:content])
    with pytest.raises(ArtifactError, match=rf"(?s)damaged.*{path.name}.*delete the folder {tmp_path} "):
        load_checkpoint(tmp_path, *model_and_optimizer())
