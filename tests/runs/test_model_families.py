"""Every family of model loaders from local folders, without network: embed, index, pair, train, export, reload.

Each run uses a different VLM and a different backbone; together the runs cover every family once.
"""

import importlib.util
import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_backbones import save_vit
from tiny_models import CONCH, MakeConfig, save_clip, save_conch, save_open_clip_bert, save_timm

pytestmark = pytest.mark.slow

STEPS = 3
KINDS = ("snippets", "text_store", "tile_store", "index", "pairs")
Save = Callable[[Path], str]


def save_open_clip(folder: Path) -> str:
    """Save a tiny open_clip model, which uses the default tokenizer of open_clip."""
    import open_clip
    import torch
    from open_clip.push_to_hf_hub import save_config_for_hf
    from safetensors.torch import save_file

    config = {
        "embed_dim": 20,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    preprocessing = {"size": 32, "mean": (0.7, 0.6, 0.7), "std": (0.2, 0.25, 0.2), "interpolation": "bicubic"}
    open_clip.model.set_model_preprocess_cfg(model, {**preprocessing, "resize_mode": "shortest"})
    save_file({n: v.contiguous() for n, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    save_config_for_hf(model, folder / "open_clip_config.json", config)
    return str(folder)


VLMS: dict[str, Save] = {
    "open_clip": save_open_clip,
    "open_clip with BERT": lambda folder: str(save_open_clip_bert(folder)),
    "transformers CLIP": lambda folder: str(save_clip(folder)),
    "embedded": lambda folder: "embedded",
}
BACKBONES: dict[str, Save] = {
    "timm": lambda folder: str(save_timm(folder)),
    "transformers ViT": lambda folder: f"transformers:{save_vit(folder, 'ViT')}",
    "transformers Dinov2": lambda folder: str(save_vit(folder, "Dinov2")),
    "embedded": lambda folder: "embedded",
}
MATRIX = [
    ("open_clip", "transformers Dinov2", "clip_it_all"),
    ("open_clip with BERT", "timm", "clip_it_paper"),
    ("transformers CLIP", "transformers ViT", "prompt_bags"),
    ("embedded", "embedded", "clip_it_all"),
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test on any attempt to open a network connection."""
    import huggingface_hub.constants

    def refuse(self: socket.socket, address: Any) -> None:
        raise AssertionError(f"attempted to connect to {address}")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def trained_student(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Record the probabilities of the trained student for `images` before its LoRA layers are merged."""
    import torch

    import clipit.models.export_classifier as export_module

    export, record = export_module.export_classifier, {}

    def record_and_export(student: Any, backbone: Any, *arguments: Any, **keywords: Any) -> Any:
        """Record the student's probabilities, then export it as usual."""
        pixels = torch.from_numpy(np.stack([backbone.preprocess.pixels(image) for image in record["images"]]))
        student.eval()
        with torch.no_grad():
            record["probabilities"] = student(backbone.preprocess.normalise(pixels)).logits.softmax(-1).numpy()
        record["lora"] = any("lora_" in name for name, _ in student.named_parameters())
        return export(student, backbone, *arguments, **keywords)

    monkeypatch.setattr(export_module, "export_classifier", record_and_export)
    return record


def check_whole_run(config: Any, trained_student: dict[str, Any]) -> None:
    """Train and export a run, and check that the reloaded classifier reproduces the trained student."""
    import clipit
    from clipit.runs.train import train_run
    from clipit.workspace.workspace import Workspace

    workspace = Workspace(config)
    tests = workspace.all_tiles.of_split("test")
    images = trained_student["images"] = [tests.read(row) for row in range(len(tests))]
    folder = train_run(config, workspace)
    for kind in KINDS:
        assert list((config.output / "artefacts").glob(f"{kind}-*/manifest.json")), kind
    pairs = workspace.pairs.table
    assert pairs.num_rows == 72 and set(pairs.column("snippet_id").to_pylist()) <= set(workspace.snippet_texts())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(np.isfinite(row["loss"]) and row["distillation"] > 0 for row in rows)
    assert trained_student["lora"]
    reloaded = clipit.load_classifier(folder / "classifier", vlm=config.vlm)
    probabilities = reloaded.predict_proba(images)
    np.testing.assert_allclose(probabilities, trained_student["probabilities"], atol=2e-5)
    table = pq.read_table(folder / "predictions.parquet")
    by_id = {row["id"]: row for row in table.to_pylist()}
    stored = [[by_id[name][f"p_{c}"] for c in tests.classes] for name in tests.ids.tolist()]
    np.testing.assert_allclose(probabilities, stored, atol=2e-5)
    assert len({tuple(np.round(row, 6)) for row in probabilities.tolist()}) > 1, "all tiles have the same probabilities"
    zero_shot = reloaded.zero_shot(images[:3], {"tumour": ["tumour with atypia"], "other": ["normal mucosa"]})
    assert np.asarray(zero_shot).shape[0] == 3


@pytest.mark.parametrize(("vlm", "backbone", "arm"), MATRIX, ids=lambda value: str(value).replace(" ", "_"))
def test_whole_run(
    configure: MakeConfig, trained_student: dict[str, Any], tmp_path: Path, vlm: str, backbone: str, arm: str
) -> None:
    folders = {name: tmp_path / name for name in ("vlm", "backbone")}
    for folder in folders.values():
        folder.mkdir()
    config = configure(
        {
            "vlm.name": VLMS[vlm](folders["vlm"]),
            "backbone.name": BACKBONES[backbone](folders["backbone"]),
            "training.steps": STEPS,
            "evaluation.bootstrap": 0,
            "output": str(tmp_path / "out"),
        },
        arm=arm,
    )
    check_whole_run(config, trained_student)
    assert config.vlm.name == "embedded" or Path(config.vlm.name).is_dir()


def test_matrix_covers_every_family() -> None:
    assert {row[0] for row in MATRIX} == set(VLMS) and {row[1] for row in MATRIX} == set(BACKBONES)


@pytest.mark.skipif(importlib.util.find_spec("conch") is None, reason="the package conch is not installed")
def test_whole_run_with_conch(
    configure: MakeConfig, trained_student: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipit.models.vlm_specs import VLMS as SPECS

    spec = replace(SPECS["conch"], dim=16, raw_dim=16, pixels=32, loader={"config": CONCH})
    monkeypatch.setitem(SPECS, "conch", spec)
    config = configure(
        {
            "vlm": {"name": "conch", "path": str(save_conch(tmp_path, CONCH)), "batch_size": 16},
            "training.steps": STEPS,
            "evaluation.bootstrap": 0,
            "output": str(tmp_path / "out"),
        },
        arm="clip_it_all",
    )
    check_whole_run(config, trained_student)
    assert config.vlm.path is not None
