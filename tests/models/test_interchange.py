"""Test export to ONNX and torch.export: equal logits outside clipit for any batch size."""

import importlib.util
import json
import logging
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

import clipit
from clipit.cli.main import main
from clipit.config.run import BackboneConfig, LoraConfig, StudentConfig
from clipit.errors import ModelError
from clipit.models import interchange
from clipit.models.backbones import load_backbone
from clipit.models.export_classifier import export_classifier
from clipit.models.inference import Classifier
from clipit.models.interchange import export_program
from clipit.models.student import build_student

CLASSES = ("adipose", "mucin", "tumour; 'quoted'")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("traceable")]


@pytest.fixture(scope="module")
def folders(vision_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    exported = {}
    for family, head in (("fused", "linear"), ("Dinov2", "late_fusion")):
        torch.manual_seed(0)
        backbone = load_backbone(BackboneConfig(name=str(vision_folders[family])))
        config = StudentConfig(head=head)  # type: ignore[arg-type]
        student = build_student(backbone, config, LoraConfig(rank=2), "lora", n_classes=3, joint_dim=24)
        folder = tmp_path_factory.mktemp(family) / "classifier"
        exported[family] = export_classifier(student.eval(), backbone, folder, classes=CLASSES)
    return exported


def wait_until(condition: Callable[[], bool]) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < 120
        time.sleep(0.05)


def normalised(classifier: Classifier, pictures: list[Image.Image]) -> torch.Tensor:
    preprocess = classifier.spec.preprocess
    return preprocess.normalise(torch.from_numpy(np.stack([preprocess.pixels(picture) for picture in pictures])))


def test_onnxruntime_gives_equal_logits_for_any_batch_size(
    folders: dict[str, Path], tmp_path: Path, pictures: list[Image.Image]
) -> None:
    classifier = clipit.load_classifier(folders["fused"], "cpu")
    exported = export_program(classifier, tmp_path / "out/model.onnx")
    assert max(exported.differences.values()) <= exported.allowed and len(exported.differences) == 3
    session = onnxruntime.InferenceSession(exported.path)
    for count in (1, 2, 4):
        pixels = normalised(classifier, pictures[:count])
        (logits,) = session.run(["logits"], {"pixels": pixels.contiguous().numpy()})
        np.testing.assert_allclose(logits, classifier.forward(pixels)[0].numpy(), atol=1e-4)
    assert sorted(path.name for path in exported.path.parent.glob("[!.]*")) == ["model.onnx", "model.onnx.json"]
    properties = {entry.key: entry.value for entry in onnx.load(exported.path).metadata_props}
    description = json.loads(exported.description.read_text())
    for values in (json.loads(properties["preprocess"]), description["preprocess"]):
        assert values["size"] == 32 and values["resize_to"] == classifier.spec.preprocess.resize_to
        assert tuple(values["mean"]) == classifier.spec.preprocess.mean
        assert tuple(values["std"]) == classifier.spec.preprocess.std
    assert json.loads(properties["classes"]) == description["classes"] == list(CLASSES)
    assert description["largest_differences"] == exported.differences
    assert str(folders["fused"].parent) not in exported.description.read_text() + str(properties)


@pytest.mark.parametrize(("format", "name"), [("onnx", "model.onnx"), ("torch_export", "model.pt2")])
def test_programs_contain_no_local_paths(
    folders: dict[str, Path], tmp_path: Path, format: interchange.Format, name: str
) -> None:
    """By default, both exporters record the call stack of every operation."""
    file = export_program(clipit.load_classifier(folders["Dinov2"], "cpu"), tmp_path / name, format).path
    parts = [file.read_bytes()]
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as opened:
            parts += map(opened.read, opened.namelist())
    folders_of_packages = [str(Path(module.__file__ or "").parent).encode() for module in (clipit, torch)]
    assert not [folder for folder in folders_of_packages for part in parts if folder in part]


def test_a_torch_program_gives_equal_logits_and_contains_the_classes(
    folders: dict[str, Path], tmp_path: Path, pictures: list[Image.Image]
) -> None:
    classifier = clipit.load_classifier(folders["Dinov2"], "cpu")
    exported = export_program(classifier, tmp_path / "model.pt2", "torch_export")
    extra = {"clipit.json": ""}
    program = torch.export.load(exported.path, extra_files=extra).module()
    for count in (1, 4):
        pixels = normalised(classifier, pictures[:count])
        torch.testing.assert_close(program(pixels), classifier.forward(pixels)[0], atol=1e-5, rtol=1e-5)
    assert json.loads(extra["clipit.json"])["classes"] == list(CLASSES)


def test_a_difference_above_the_tolerance_is_an_error_and_leaves_no_file(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = clipit.load_classifier(folders["fused"], "cpu")
    (tmp_path / "model.onnx").write_text("earlier")

    def write(_: nn.Module, path: Path, *rest: object) -> None:
        path.write_text("another program")

    monkeypatch.setattr(interchange, "_write_onnx", write)
    monkeypatch.setattr(interchange, "_open_onnx", lambda _: lambda pixels: classifier.forward(pixels)[0] + 0.1)
    with pytest.raises(ModelError, match=r"differs from the classifier: random values 0\.1"):
        export_program(classifier, tmp_path / "model.onnx")
    assert export_program(classifier, tmp_path / "other.onnx", tolerance=0.2).path.is_file()
    (tmp_path / "other.onnx").unlink()
    (tmp_path / "other.onnx.json").unlink()
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "earlier"


def test_exports_that_are_not_possible_are_errors(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"must end in \.onnx"):
        export_program(clipit.load_classifier(folders["fused"], "cpu"), tmp_path / "tile.png")
    with pytest.raises(ModelError, match=r"(?s)must end in \.onnx.*or use the format torch_export"):
        export_program(clipit.load_classifier(folders["fused"], "cpu"), tmp_path / "tile.pt2")
    with pytest.raises(ModelError, match="load it in float32"):
        export_program(clipit.load_classifier(folders["fused"], "cpu", dtype="bf16"), tmp_path / "m.onnx")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxscript" else find(name, *rest)
    )
    with pytest.raises(ModelError, match=r"(?s)not installed: onnxscript.*pip install onnx onnxscript"):
        export_program(clipit.load_classifier(folders["fused"], "cpu"), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_the_command_prints_the_largest_difference(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(interchange, "_write_torch", lambda _, path, *rest: path.write_text(""))
    monkeypatch.setattr(interchange, "_open_torch", lambda _: lambda pixels: torch.full((len(pixels), 3), float("nan")))
    arguments = [str(folders["fused"]), "--format", "torch_export", "--out", str(tmp_path / "model.pt2")]
    monkeypatch.setattr(sys, "argv", ["clipit", "export", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "random values nan" in capsys.readouterr().err and not list(tmp_path.glob("[!.]*"))
    exact = clipit.load_classifier(folders["fused"], "cpu").forward
    monkeypatch.setattr(interchange, "_open_torch", lambda _: lambda pixels: exact(pixels)[0])
    monkeypatch.setattr(sys, "argv", ["clipit", "export", *arguments])
    main()
    printed = capsys.readouterr().out
    assert "model.pt2.json" in printed and "largest logit difference: random values 0," in printed


def test_a_second_export_to_the_same_file_waits_for_the_first(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, write, second = tmp_path / "model.pt2", interchange._write_torch, []

    def write_slowly(*arguments: Any) -> None:
        if not second:  # start the second export during the first
            other = clipit.load_classifier(folders["Dinov2"], "cpu")
            second.append(Thread(target=export_program, args=(other, path, "torch_export")))
            second[0].start()
            wait_until(lambda: "waiting" in caplog.text or not second[0].is_alive())
        write(*arguments)

    monkeypatch.setattr(interchange, "_write_torch", write_slowly)
    with caplog.at_level(logging.INFO, "clipit"):
        exported = export_program(clipit.load_classifier(folders["fused"], "cpu"), path, "torch_export")
        second[0].join()
    assert max(exported.differences.values()) <= exported.allowed and "another process" in caplog.text
    assert sorted(file.name for file in tmp_path.iterdir()) == [".model.pt2.lock", "model.pt2", "model.pt2.json"]
