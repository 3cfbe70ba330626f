"""Test errors for damaged, inconsistent and outdated classifier folders."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import clipit
from clipit.config.run import BackboneConfig, LoraConfig, StudentConfig, VLMConfig
from clipit.errors import ModelError
from clipit.models import classifier_spec
from clipit.models.backbones import load_backbone
from clipit.models.classifier_checks import check_network
from clipit.models.classifier_spec import read_spec, write_spec
from clipit.models.export_classifier import export_classifier
from clipit.models.student import build_student
from clipit.models.vlm import load_vlm

CLASSES = ("adipose", "mucin", "tumour")


@pytest.fixture(scope="module")
def exported(timm_folder: Path, clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exported classifiers with prompts, one with a linear head and one with late fusion."""
    folders = {}
    vlm = load_vlm(VLMConfig(name=str(clip_folder)))
    rng = np.random.default_rng(0)
    for head in ("linear", "late_fusion"):
        torch.manual_seed(0)
        backbone = load_backbone(BackboneConfig(name=str(timm_folder)))
        config = StudentConfig(head=head)  # type: ignore[arg-type]
        student = build_student(backbone, config, LoraConfig(rank=2), "lora", n_classes=3, joint_dim=24)
        folders[head] = export_classifier(
            student,
            backbone,
            tmp_path_factory.mktemp(head) / "c",
            classes=CLASSES,
            vlm_info=vlm.describe(),
            text_mean=rng.normal(size=24).astype(np.float32),
            prompts={"tiny": (CLASSES, rng.normal(size=(3, 24)).astype(np.float32))},
        )
    return folders


@pytest.fixture(params=["linear", "late_fusion"])
def folder(request: pytest.FixtureRequest, exported: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported[request.param], tmp_path / "c"))


@pytest.fixture
def plain(exported: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported["linear"], tmp_path / "c"))


def load(folder: Path) -> None:
    clipit.load_classifier(folder, "cpu")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change `clipit.json` and update its digest."""
    values = json.loads((folder / "clipit.json").read_text())
    change(values)
    values.pop("sha256", None)
    values["sha256"] = classifier_spec._digest(values)
    (folder / "clipit.json").write_text(json.dumps(values))


def rewrite(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change a weights file and update its checksum."""
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)
    write_spec(folder, replace(read_spec(folder)))


def test_an_intact_folder_can_be_loaded(folder: Path) -> None:
    load(folder)
    shutil.rmtree(folder / "adapter")  # used by peft only
    load(folder)


def test_a_flipped_bit_in_any_file_is_an_error(folder: Path) -> None:
    for path in [path for path in folder.iterdir() if path.is_file()]:
        content = path.read_bytes()
        for position in (len(content) // 3, len(content) // 2, len(content) - 40):
            path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
            with pytest.raises(ModelError):
                load(folder)
        path.write_bytes(content)
    load(folder)


def test_missing_and_replaced_files_are_errors(plain: Path, timm_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"clipit\.json is missing"):
        load(timm_folder)
    (plain / "zero_shot.safetensors").rename(plain / "other")
    with pytest.raises(ModelError, match=r"files are missing: zero_shot"):
        load(plain)
    (plain / "other").rename(plain / "zero_shot.safetensors")
    (plain / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"(?s)damaged or changed files: model\.safetensors.*again"):
        load(plain)
    (plain / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ModelError, match=r"(?s)Git LFS pointer.*model\.safetensors.*run git lfs pull"):
        load(plain)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda v: v.update(classes=["adipose", "mucin"]),
            r"classes are adipose, mucin|image_head\.weight is \(3, 32\), not \(2, 32\)",
        ),
        (lambda v: v.update(classes=[]), "0 classes"),
        (lambda v: v.update(classes="abc"), "classes: "),
        (lambda v: v.update(classes=["a", "a", "b"]), "repeated"),
        (lambda v: v.update(classes=[1, 2, 3]), "classes.0"),
        (lambda v: v.update(dim=-1), "dim: -1"),
        (lambda v: v.update(dim="32"), "dim: "),
        (lambda v: v.update(projector_layers=3), "projector_layers"),
        (lambda v: v.update(projector_layers=True), "projector_layers"),
        (lambda v: v.update(head="other"), "head: "),
        (lambda v: v.update(mpp=0), "mpp"),
        (lambda v: v.update(loader="pickle"), "loader"),
        (lambda v: v.update(pooling="max"), "pooling"),
        (lambda v: v.update(unknown=1), "unknown"),
        (lambda v: v.pop("preprocess"), "preprocess"),
        (lambda v: v["preprocess"].update(std=[0.2, 0.0, 0.2]), r"preprocess\.std"),
        (lambda v: v["preprocess"].update(std=[0.2, float("nan"), 0.2]), "std"),
        (lambda v: v["preprocess"].update(mean=[0.2, 0.2]), "mean"),
        (lambda v: v["preprocess"].update(std=[0.2, 0.2, 1e-30]), r"preprocess\.std"),
        (lambda v: v["preprocess"].update(mean=[123.7, 116.3, 103.5]), r"preprocess\.mean"),
        (lambda v: v["preprocess"].update(mean=[0.1, 0.1, 0.1]), r"mean \(0\.1, 0\.1, 0\.1\).* in config\.json"),
        (lambda v: v["preprocess"].update(interpolation="box"), "interpolation"),
        (lambda v: v["preprocess"].update(size=0), "size 0"),
        (lambda v: v["preprocess"].update(size=1), "the preprocessing is 1 px .* in clipit.json, but 32 px"),
        (lambda v: v["preprocess"].update(size=10**9, resize_to=10**9), "size 1000000000 or resize_to 1000000000 is"),
        (lambda v: v["preprocess"].update(resize_to=10**9), "larger than its maximum of 8192 or 16384 pixels"),
        (
            lambda v: v.update(dim=33),
            r"32 features and 3 classes, but clipit.json states 33 and 3|weight is \(3, 32\), not \(3, 33\)",
        ),
        (lambda v: v["preprocess"].update(resize_to=1), "not between 1 and resize_to"),
        (lambda v: v["preprocess"].update(mode="stretch"), "mode"),
        (lambda v: v["vlm"].update(logit_scale=0.0), "logit_scale"),
        (lambda v: v["vlm"].update(logit_scale="100"), "logit_scale"),
        (lambda v: v["vlm"].pop("fingerprint"), "fingerprint"),
        (lambda v: v["vlm"].update(joint_dim=7), "24 outputs"),
        (lambda v: v.update(prompts={"tiny": ["a", "b"]}), "prompts"),
        (lambda v: v.update(prompts={"other": ["a"]}), "prompts.other is missing"),
        (lambda v: v.update(files={}), "no checksum"),
        (lambda v: v["files"].update({"../../x": "0"}), "outside the folder"),
    ],
)
def test_every_field_is_validated(folder: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    edit(folder, change)
    with pytest.raises(ModelError, match=words):
        load(folder)


def test_an_input_size_that_the_backbone_does_not_support_is_an_error(folder: Path) -> None:
    classifier = clipit.load_classifier(folder, "cpu")
    spec = replace(classifier.spec, preprocess=classifier.spec.preprocess.at(1))
    with pytest.raises(ModelError, match="does not map images of 1 x 1 pixels to 32 features"):
        check_network(spec, classifier.network, folder)


def test_a_changed_class_order_is_an_error(plain: Path, exported: dict[str, Path], tmp_path: Path) -> None:
    edit(plain, lambda values: values.update(classes=list(reversed(CLASSES))))
    with pytest.raises(ModelError, match=r"classes are tumour, mucin, adipose in clipit\.json, but adipose"):
        load(plain)
    other = Path(shutil.copytree(exported["late_fusion"], tmp_path / "d"))
    values = json.loads((other / "clipit.json").read_text())
    (other / "clipit.json").write_text(json.dumps({**values, "classes": list(reversed(CLASSES))}))
    with pytest.raises(ModelError, match="changed after the export"):
        load(other)


@pytest.mark.parametrize(
    ("name", "key"),
    [("model.safetensors", "head.bias"), ("zero_shot.safetensors", "projector.weight"),
     ("zero_shot.safetensors", "text_mean")],
)  # fmt: skip
def test_weights_that_are_not_finite_are_an_error(plain: Path, name: str, key: str) -> None:
    rewrite(plain, name, lambda tensors: tensors[key].view(-1)[0].fill_(float("nan")))
    with pytest.raises(ModelError, match=f"not finite: {key}"):
        load(plain)


def test_a_head_of_a_different_shape_is_an_error(exported: dict[str, Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(exported["late_fusion"], tmp_path / "d"))
    rewrite(other, "heads.safetensors", lambda tensors: tensors.update({"image_head.weight": torch.zeros(4, 32)}))
    with pytest.raises(ModelError, match=r"image_head\.weight is \(4, 32\), not \(3, 32\)"):
        load(other)


def test_an_unknown_or_damaged_format_is_an_error(plain: Path) -> None:
    for format_number, words in (
        (1, r"format 1; it was written before.*export or train it again"),
        (None, "format None"),
    ):
        edit(plain, lambda values, format_number=format_number: values.update(format=format_number))
        with pytest.raises(ModelError, match=f"(?s){words}"):
            load(plain)
    for content in ("[", "[" * 100_000):
        (plain / "clipit.json").write_text(content)
        with pytest.raises(ModelError, match="unreadable"):
            load(plain)


def test_an_unavailable_device_is_an_error(plain: Path) -> None:
    for device in ("cuda:7", "gpu", "meta:x"):
        with pytest.raises(ModelError, match=f"(?s)device cannot be used.*device='{device}'.*use one of: cpu"):
            clipit.load_classifier(plain, device)
