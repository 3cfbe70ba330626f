"""Experiment trackers: they write to the run folder, without a server."""

import json
from pathlib import Path

import pytest
from logged_lines import capture_log
from tiny_models import MakeConfig

from clipit.errors import ConfigError
from clipit.runs.tracking import opening_command
from clipit.runs.train import train_run

pytestmark = pytest.mark.slow


def test_tensorboard_logs_curves_and_test_scores(configure: MakeConfig) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    lines = capture_log()
    folder = train_run(configure({"training.steps": 2, "tracking.tracker": "tensorboard"}, name="board"))
    assert (folder / "metrics.jsonl").is_file()
    assert f"to open the tracker: tensorboard --logdir {folder.parent}" in lines
    events = accumulator.EventAccumulator(str(folder / "clipit")).Reload()
    test = json.loads((folder / "results.json").read_text())["splits"]["test"]["metrics"]["accuracy"]["value"]
    (logged,) = events.Scalars("test_accuracy")
    assert (logged.step, logged.value) == (2, pytest.approx(test))
    assert "validation_accuracy" in events.Tags()["scalars"] or "loss" in events.Tags()["scalars"]


def test_wandb_offline_needs_no_key(configure: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    keys = {"training.steps": 2, "tracking.tracker": "wandb", "tracking.group": "several arms"}
    config = configure(keys, name="offline")
    folder = train_run(config)
    wandb.teardown()  # happens at the end of a process and flushes the record
    (record,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    content = record.read_bytes()
    assert b"several arms" in content and b"test_accuracy" in content and b"training.learning_rate" in content
    assert not (tmp_path / "wandb").exists(), "no files are left in the working directory"
    assert list(folder.parent.glob(opening_command(config, folder).rpartition(f"{folder.parent}/")[2]))


def test_commands_that_open_a_tracker_quote_the_path(configure: MakeConfig) -> None:
    folder = Path("my runs/demo/image_only-seed0")
    commands = {
        tracker: opening_command(configure({"tracking.tracker": tracker}), folder)
        for tracker in ("none", "tensorboard", "wandb", "trackio")
    }
    assert commands == {
        "none": "",
        "tensorboard": "tensorboard --logdir 'my runs/demo'",
        "wandb": "wandb sync 'my runs/demo'/*/wandb/offline-run-*",
        "trackio": "trackio show --project clipit",
    }
    online = configure({"tracking.tracker": "wandb", "tracking.wandb_mode": "online"})
    assert opening_command(online, folder) == "", "wandb prints the URL itself"


def test_a_missing_tracker_package_is_an_error(configure: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.tracking.filter_trackers", lambda *_, **__: [])
    with pytest.raises(ConfigError, match="trackio is not installed"):
        train_run(configure({"training.steps": 2, "tracking.tracker": "trackio"}, name="absent"))
