"""The shipped LoRA rank sweep with the real wandb client in offline mode: agent arguments and recorded values.

Not covered: `wandb sweep`, which registers the file with a server, and the agent's loop.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from clipit.runs.train import train_run
from clipit.sweeps.sweep_file import parse_options, read_sweep
from clipit.sweeps.trials import make_trial

pytestmark = pytest.mark.slow
SHIPPED = Path(__file__).parents[2] / "configs" / "sweeps" / "lora_rank.yaml"


def test_a_trial_started_by_an_agent_is_recorded(
    write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    config = write_config({"training.steps": 2, "training.evaluate_every": 2, "evaluation.bootstrap": 0})
    sweep = read_sweep(SHIPPED)
    values = {"lora.rank": {"value": 4}, "seed": {"value": 1}}
    parameters = tmp_path / "sweep-parameters.yaml"
    parameters.write_text(yaml.safe_dump({"wandb_version": 1, **values}), encoding="utf-8")
    wandb.teardown()  # the client reads environment variables only once
    for name, value in {
        "WANDB_SWEEP_ID": "ranks123", "WANDB_SWEEP_PARAM_PATH": str(parameters), "WANDB_RUN_ID": "trial001",
        "WANDB_SILENT": "true", "WANDB_MODE": "offline",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    command = [part for part in yaml.safe_load(SHIPPED.read_text())["command"] if part.startswith("--")]
    replaced = ("--trial", "--config=demo", "--tracking.wandb_mode=online")
    arguments = [part for part in command if part not in replaced]
    flags = utils.create_sweep_command_args({"args": values})["args"]
    offline = [f"--config={config}", "--tracking.wandb_mode=offline"]
    trial = make_trial(sweep, parse_options([*arguments, *offline, *flags]))
    assert trial.config.tracking.tracker == "wandb" and trial.config.tracking.group == "lora_rank"
    folder = train_run(trial.config)
    wandb.teardown()
    (record,) = folder.glob("wandb/offline-run-*/run-trial001.wandb")
    content = record.read_bytes()
    for recorded in (b"ranks123", b"lora.rank", b"lora_rank", b"validation_balanced_accuracy", b"test_accuracy"):
        assert recorded in content
