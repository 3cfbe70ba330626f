"""Trackers beside metrics.jsonl: without a server, into the run's own folder."""

from pathlib import Path

import pytest
from tiny_models import MakeConfig

from clipit.errors import ConfigError
from clipit.runs.train import train_run

pytestmark = pytest.mark.slow


def test_tensorboard(configure: MakeConfig) -> None:
    folder = train_run(configure({"training.steps": 2, "tracking.tracker": "tensorboard"}, name="board"))
    assert list(folder.rglob("events.out.tfevents.*"))
    assert (folder / "metrics.jsonl").is_file()


def test_wandb_offline_needs_no_key(configure: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    folder = train_run(configure({"training.steps": 2, "tracking.tracker": "wandb"}, name="offline"))
    assert list(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert not (tmp_path / "wandb").exists(), "nothing is left where the command was started"


def test_a_tracker_that_is_not_installed(configure: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda *_, **__: [])
    with pytest.raises(ConfigError, match="trackio is not installed"):
        train_run(configure({"training.steps": 2, "tracking.tracker": "trackio"}, name="absent"))
