"""Test that predictions are unchanged on another device, in bfloat16 and after compilation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clipit
from clipit.config.run import BackboneConfig, LoraConfig, StudentConfig
from clipit.errors import ModelError
from clipit.models.backbones import load_backbone
from clipit.models.export_classifier import export_classifier
from clipit.models.student import build_student

FAMILIES = {"timm": ("fused", "linear"), "transformers": ("Dinov2", "late_fusion")}


@pytest.fixture(scope="module", params=list(FAMILIES))
def folder(
    request: pytest.FixtureRequest, vision_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    family, head = FAMILIES[request.param]
    torch.manual_seed(0)
    backbone = load_backbone(BackboneConfig(name=str(vision_folders[family])))
    config = StudentConfig(head=head)  # type: ignore[arg-type]
    student = build_student(backbone, config, LoraConfig(rank=2), "lora", n_classes=3, joint_dim=24)
    return export_classifier(student.eval(), backbone, tmp_path_factory.mktemp("c") / "c", classes=("a", "b", "c"))


def test_bfloat16_gives_similar_probabilities(folder: Path, pictures: list[Image.Image]) -> None:
    exact, half = clipit.load_classifier(folder, "cpu"), clipit.load_classifier(folder, "cpu", dtype="bf16")
    assert exact.dtype == torch.float32 and half.dtype == torch.bfloat16
    probabilities, expected = half.predict_proba(pictures), exact.predict_proba(pictures)
    assert 0 < np.abs(probabilities - expected).max() < 0.02
    logits, projected = half.forward(torch.zeros(2, 3, 32, 32))
    assert logits.dtype == torch.float32 and projected is not None and projected.dtype == torch.float32
    np.testing.assert_array_equal(exact.to(dtype=torch.bfloat16).predict_proba(pictures), probabilities)
    with pytest.raises(ModelError, match="use float32 or bfloat16"):
        exact.to(dtype="float16")


def test_a_classifier_can_be_moved_between_devices(folder: Path, pictures: list[Image.Image]) -> None:
    classifier = clipit.load_classifier(folder, "cpu")
    expected = classifier.predict_proba(pictures)
    assert classifier.to("meta").device == torch.device("meta")
    assert {tensor.device.type for tensor in classifier.network.parameters()} == {"meta"}
    with pytest.raises(ModelError, match="device cannot be used"):
        classifier.to("cuda:99")
    if torch.cuda.is_available():
        moved = clipit.load_classifier(folder, "cpu").to("cuda")
        np.testing.assert_allclose(moved.predict_proba(pictures), expected, atol=1e-3)
        np.testing.assert_allclose(moved.to("cpu").predict_proba(pictures), expected, atol=1e-6)


@pytest.mark.parametrize("folder", ["timm"], indirect=True)
def test_a_compiled_classifier_gives_equal_probabilities(
    folder: Path, pictures: list[Image.Image], traceable: None
) -> None:
    plain, compiled = clipit.load_classifier(folder, "cpu"), clipit.load_classifier(folder, "cpu")
    assert compiled.compile(backend="eager") is compiled
    np.testing.assert_allclose(compiled.predict_proba(pictures), plain.predict_proba(pictures), atol=1e-6)


@pytest.mark.parametrize("folder", ["timm"], indirect=True)
def test_a_classifier_remains_usable_after_a_failed_compilation(
    folder: Path, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(_: torch.Tensor) -> None:
        raise RuntimeError("the backend raised:\nno C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda _: compiled)
    with pytest.raises(ModelError, match=r"torch\.compile failed: .*no C\+\+ compiler"):
        clipit.load_classifier(folder, "cpu", compile=True)
    classifier = clipit.load_classifier(folder, "cpu")
    with pytest.raises(ModelError):
        classifier.compile()
    assert len(classifier.predict(pictures)) == len(pictures)
