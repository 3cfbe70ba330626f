"""Adapting a VLM to the small world: training, resuming and exporting."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from logged_lines import capture_log
from safetensors.torch import load_file
from tiny_models import WORDS, MakeConfig
from torch import Tensor

from clipit.config.load import read_yaml, validate_file
from clipit.config.run import RunConfig, VLMConfig
from clipit.config.studies import ProbingConfig
from clipit.config.vlm_training import AdaptConfig
from clipit.errors import ArtifactError, ClipitError, ConfigError
from clipit.models.vlm import load_vlm
from clipit.models.vlm_export import adapted_vlm
from clipit.output_files.artifacts import read_json, write_json
from clipit.runs.folder import config_differences
from clipit.studies.probing.probing_study import probe
from clipit.vlm_training.adapt import _resolve_precision, adapt, adaptation_folder, is_adapted
from clipit.vlm_training.contrastive_step import ContrastStep
from clipit.workspace.workspace import Workspace

pytestmark = pytest.mark.slow
KEYS: dict[str, Any] = {
    "steps": 9,
    "batch_size": 8,
    "micro_batch": 5,
    "learning_rate": 3e-3,
    "checkpoint_every": 4,
    "validate_every": 3,
    "log_every": 1,
    "lora": {"dropout": 0.1},
    "cases": {"tiles": 2, "snippets": 2},
}


def section(**keys: Any) -> AdaptConfig:
    return AdaptConfig.model_validate(KEYS | keys)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a report of three sentences for each patient of the small world."""
    path = tmp_path_factory.mktemp("own") / "reports.jsonl"
    rows = []
    for split, count in (("train", 18), ("validation", 6), ("test", 12)):
        for number in range(count):
            sentences = [f"Case {split}{number} part {k} shows {WORDS[(number + 5 * k) % 34]}" for k in range(3)]
            rows.append({"id": f"{split}{number}", "text": ". ".join(sentences) + ".", "group": f"{split}-{number}"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def config(configure: MakeConfig, reports: Path, tmp_path: Path) -> RunConfig:
    keys = {"reports.path": str(reports), "reports.group_column": "group", "reports.label_column": None}
    run_config = configure({**keys, "pairing.reports": "own"}, name="adapted")
    return run_config.model_copy(update={"output": tmp_path})


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key not in ("images_per_second", "data_wait")}
        for line in lines
    ]


def weights_of(folder: Path) -> Mapping[str, Tensor]:
    return load_file(folder / "checkpoints" / "step-00000009" / "weights.safetensors")


def test_an_adapted_vlm_loads_and_a_resumed_adaptation_is_bit_identical(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(config)
    before = workspace.vlm.encode_texts(["tumour with mucin"])
    folder = adapt(config, section(), "text", 3, workspace)
    rows, weights = rows_of(folder), weights_of(folder)
    facts = read_json(folder / "training.json", "")
    assert is_adapted(folder) and facts["steps"] == 9 and facts["examples"]["examples"] == 18
    assert sum(row["loss"] for row in rows[-3:]) < sum(row["loss"] for row in rows[:3])
    assert [row["step"] for row in rows if "validation_loss" in row] == [3, 6, 9]

    after = load_vlm(adapted_vlm(config.vlm, folder))
    assert after.fingerprint == facts["adapted_fingerprint"] != workspace.vlm.fingerprint
    assert after.logit_scale == pytest.approx(facts["logit_scale"][1], rel=1e-5)
    assert "Case train" not in (folder / "vlm" / "README.md").read_text(encoding="utf-8")
    assert not torch.equal(after.encode_texts(["tumour with mucin"]), before)
    assert torch.equal(workspace.vlm.encode_texts(["tumour with mucin"]), before), (
        "the VLM of the workspace must not change"
    )

    recorded = validate_file(read_yaml(folder / "config.yaml"), "config.yaml")
    assert recorded.run == config and recorded.adapt.learning_rate == 3e-3
    assert recorded.adapt.arms == ("text",) and recorded.adapt.seeds == (3,)
    moved = config.model_copy(update={"tiles": config.tiles.model_copy(update={"split_seed": 7})})
    assert [line.split(":")[0] for line in config_differences(folder, moved)] == ["tiles.split_seed"]

    stamp = (folder / "training.json").stat().st_mtime_ns
    assert adapt(config, section(), "text", 3, workspace) == folder
    assert (folder / "training.json").stat().st_mtime_ns == stamp, "a finished adaptation is not repeated"
    with pytest.raises(ArtifactError, match=r"adapt\.learning_rate"):
        adapt(config, section(learning_rate=1e-4), "text", 3, workspace)

    shutil.rmtree(folder)
    calls = 0

    original = ContrastStep.__call__

    def killed(self: ContrastStep, step: int, pixels: Any) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        return original(self, step, pixels)

    monkeypatch.setattr(ContrastStep, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        adapt(config, section(), "text", 3, workspace)
    assert not is_adapted(folder)
    adapt(config, section(), "text", 3, workspace)
    assert calls == 7 + 5, "the two steps after the last checkpoint are repeated"
    assert rows_of(folder) == rows
    for name, value in weights_of(folder).items():
        assert torch.equal(value, weights[name]), name
    assert read_json(folder / "training.json", "")["adapted_fingerprint"] == facts["adapted_fingerprint"]


def test_a_vlm_adapted_to_data_of_test_patients_gives_a_warning(config: RunConfig, tmp_path: Path) -> None:
    folder = adapt(config, section(steps=2), "text", 0, Workspace(config))
    files = [file for name in ("vlm", "adapter") for file in (folder / name).rglob("*") if file.is_file()]
    assert not any(b"train-1" in file.read_bytes() for file in files), "exported folders must not name patients"

    def warnings(vlm: VLMConfig, **tiles: Any) -> list[str]:
        changed = config.model_copy(update={"vlm": vlm, "tiles": config.tiles.model_copy(update=tiles)})
        lines, workspace = capture_log(), Workspace(changed)
        notes = [note for note in workspace.all_tiles.notes if "was adapted to data" in note]
        assert [note for note in workspace.tiles(0).notes if "was adapted to data" in note] == notes
        assert all(sum(note in line for line in lines) == 1 for note in notes)
        return notes

    exchanged = {"splits": {"train": "test", "validation": "validation", "test": "train"}}
    merged = adapted_vlm(config.vlm, folder)
    assert not warnings(merged) and not warnings(config.vlm, **exchanged)
    for vlm in (merged, config.vlm.model_copy(update={"adapter": str(folder / "adapter")})):
        (note,) = warnings(vlm, **exchanged)
        assert "WARNING: the VLM text-seed0/" in note and "of test patients" in note
        assert "18 such patients (train-0, train-1," in note
    tiles = config.tiles.model_copy(update=exchanged)
    page = probe(config.model_copy(update={"vlm": merged, "tiles": tiles}), ProbingConfig(at=(1, 5))) / "probing.md"
    assert "WARNING: the VLM text-seed0/vlm was adapted to data of test patients" in page.read_text(encoding="utf-8")
    copied = shutil.copytree(folder / "vlm", tmp_path / "copied" / "vlm")
    (note,) = warnings(VLMConfig(name=str(copied)))
    assert "copied/vlm was adapted to data of patients, which cannot be compared" in note
    second_config = config.model_copy(update={"vlm": VLMConfig(name=str(copied)), "name": "again"})
    (note,) = warnings(
        adapted_vlm(second_config.vlm, adapt(second_config, section(steps=2), "text", 0, Workspace(second_config)))
    )
    assert "18 known patients and others, which cannot be compared" in note


def test_the_images_arm_trains_only_the_image_tower(config: RunConfig) -> None:
    workspace = Workspace(config)
    folder = adapt(config, section(steps=3, lora={}), "images", 0, workspace)
    after = load_vlm(adapted_vlm(config.vlm, folder))
    assert torch.allclose(after.encode_texts(["mucin"]), workspace.vlm.encode_texts(["mucin"]))
    with pytest.raises(ConfigError, match="images"):
        adapt(config, section(towers=["text"]), "images", 0, workspace)


def test_a_frozen_text_tower_encodes_texts_once_and_training_resumes_identically(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(config)
    keys = {"towers": ["image"], "validate_every": 100, "keep": "best"}
    encoded: list[int] = []
    original = ContrastStep._encode_texts

    def counted(self: ContrastStep, rows: Any) -> Tensor:
        encoded.extend(rows if len(self.examples.texts) == 54 else ())
        return original(self, rows)

    monkeypatch.setattr(ContrastStep, "_encode_texts", counted)
    folder = adapt(config, section(**keys), "text", 1, workspace)
    assert sorted(encoded) == list(range(54)), "each training text is encoded once in 9 steps of 8 bags"
    facts, weights = read_json(folder / "training.json", ""), weights_of(folder)
    assert facts["chosen_step"] == 9 and np.isfinite(facts["validation_loss"])
    assert {"examples", "validation examples"} <= read_json(folder / "run.json", "")["inputs"].keys()
    shutil.rmtree(folder / "checkpoints" / "step-00000009")
    (folder / "training.json").unlink()
    adapt(config, section(**keys), "text", 1, workspace)
    assert all(torch.equal(value, weights[name]) for name, value in weights_of(folder).items())


def test_a_started_adaptation_keeps_its_precision(config: RunConfig, tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"keys": {"adapt.precision": "bf16", "training.precision": "fp16"}})
    assert _resolve_precision(config, section(), tmp_path).precision == "no", "the adaptation has not started"
    (tmp_path / "checkpoints" / "step-00000004").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000004" / "progress.json").write_text("{}")
    assert _resolve_precision(config, section(), tmp_path).precision == "bf16"
    assert _resolve_precision(config, section(precision="no"), tmp_path).precision == "no"


def test_bf16_steps_change_the_loss_slightly_and_keep_float32_weights(config: RunConfig) -> None:
    workspace, losses = Workspace(config), {}
    for precision in ("no", "bf16"):
        run_config = config.model_copy(update={"name": precision})
        keys = {"precision": precision, "steps": 2, "lora": {}, "validate_every": 100}
        folder = adapt(run_config, section(**keys), "text", 0, workspace)
        assert read_json(folder / "run.json", "")["keys"]["adapt.precision"] == precision
        losses[precision] = [row["loss"] for row in rows_of(folder)]
        trained = load_file(folder / "checkpoints" / "step-00000002" / "weights.safetensors")
        assert {value.dtype for value in trained.values()} == {torch.float32}
        assert np.isfinite(load_vlm(adapted_vlm(config.vlm, folder)).encode_texts(["mucin"]).numpy()).all()
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.05)
    assert all(low != full for low, full in zip(losses["bf16"], losses["no"], strict=True))


def test_the_out_of_memory_error_names_the_micro_batch_key(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(config)

    def exhausted(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ContrastStep, "__call__", exhausted)
    with pytest.raises(ClipitError, match=r"(?s)adapt\.micro_batch.*dropout"):
        adapt(config, section(), "text", 5, workspace)
    assert not is_adapted(adaptation_folder(config, "text", 5))


def test_bags_are_re_mined_and_a_resumed_adaptation_loads_them(
    configure: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure({"pairing.k": 2}, name="mined").model_copy(update={"output": tmp_path})
    keys = {"data": "bags", "steps": 6, "checkpoint_every": 5, "bags": {"tiles": 1, "snippets": 2, "mine_every": 2}}
    workspace = Workspace(config)
    folder = adapt(config, section(**keys), "text", 0, workspace)
    mined = sorted(path.name for path in (folder / "mined").glob("*.safetensors"))
    assert mined == ["step-00000002.safetensors", "step-00000004.safetensors"]
    first = load_file(folder / "checkpoints" / "step-00000006" / "weights.safetensors")
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    (folder / "training.json").unlink()
    adapt(config, section(**keys), "text", 0, workspace)
    resumed = load_file(folder / "checkpoints" / "step-00000006" / "weights.safetensors")
    assert all(torch.equal(first[name], resumed[name]) for name in first)
    assert np.isfinite([row["loss"] for row in rows_of(folder)]).all()


def test_a_tracker_receives_losses_temperature_and_final_scores(config: RunConfig) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracked = config.model_copy(update={"tracking": config.tracking.model_copy(update={"tracker": "tensorboard"})})
    log_lines = capture_log()
    workspace = Workspace(tracked)
    folder = adapt(tracked, section(steps=3), "text", 0, workspace, lambda folder: {"test_zero_shot_auroc": 0.75})
    assert f"to open the tracker: tensorboard --logdir {folder.parent}" in log_lines
    events = accumulator.EventAccumulator(str(folder / "clipit")).Reload()
    (score,) = events.Scalars("test_zero_shot_auroc")
    assert (score.step, score.value) == (3, 0.75)
    for name, rows in (("loss", 3), ("logit_scale", 3), ("validation_loss", 1)):
        logged = [row[name] for row in rows_of(folder) if name in row]
        assert len(logged) == rows and [event.value for event in events.Scalars(name)] == pytest.approx(logged)
    shutil.rmtree(folder / "clipit")
    adapt(tracked, section(steps=3), "text", 0, workspace)
    assert not (folder / "clipit").exists(), "a finished adaptation logs nothing"
