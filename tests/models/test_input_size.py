"""Test `backbone.pixels`: backbones with a different input size, from loading to export."""

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tiny_backbones import save_vit

import clipit
from clipit.config.run import BackboneConfig, LoraConfig, StudentConfig
from clipit.errors import ModelError
from clipit.models import backbones
from clipit.models.backbones import load_backbone
from clipit.models.export_classifier import export_classifier
from clipit.models.preprocess import Preprocess
from clipit.models.specs import HALF, ModelSpec
from clipit.models.student import build_student

CLASSES = ("adipose", "mucin", "tumour")
SHRINK = Preprocess(224, 256, "shortest", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def load(name: object, pixels: int | None = None, **more: Any) -> backbones.Backbone:
    torch.manual_seed(0)
    return load_backbone(BackboneConfig(name=str(name), pixels=pixels, **more))


def test_a_different_input_size_scales_the_preprocessing() -> None:
    small = SHRINK.at(112)
    assert (small.size, small.resize_to) == (112, 128)
    assert SHRINK.at(224) == SHRINK and small.hash != SHRINK.hash
    squashed = replace(SHRINK, size=64, resize_to=64, mode="squash")
    assert squashed.at(31).resize_to == 31


@pytest.mark.parametrize("pixels", [16, 48])
def test_timm_transformers_match_those_that_timm_loads_at_this_size(timm_folder: Path, pixels: int) -> None:
    backbone = load(timm_folder, pixels)
    # timm resamples the position embeddings while loading.
    reference = timm.create_model(f"local-dir:{timm_folder}", pretrained=True, num_classes=0, img_size=pixels).eval()
    images = torch.randn(2, 3, pixels, pixels)
    with torch.no_grad():
        torch.testing.assert_close(backbone.module(images), reference(images))
    assert backbone.preprocess.size == pixels and backbone.plain_head and backbone.expected_mpp == 0.5
    assert backbone.timm is not None and backbone.timm.model_args["img_size"] == pixels


def test_the_default_input_size_changes_nothing(timm_folder: Path, vision_folders: dict[str, Path]) -> None:
    for name in (timm_folder, vision_folders["ViT"]):
        default, explicit, other = (load(name, pixels) for pixels in (None, 32, 16))
        assert (default.fingerprint, default.preprocess) == (explicit.fingerprint, explicit.preprocess)
        assert other.fingerprint != default.fingerprint and other.preprocess.hash != default.preprocess.hash


def test_the_bundled_backbone_at_half_its_size() -> None:
    backbone = load("embedded", 32)
    assert (backbone.preprocess.size, backbone.preprocess.resize_to, backbone.plain_head) == (32, 32, True)
    assert backbone.module(torch.zeros(2, 3, 32, 32)).shape == (2, backbone.dim)
    assert backbone.module.pos_embed.shape[1] == 1 + 2 * 2  # class token, and 2 x 2 patches of 16 pixels
    assert backbone.expected_mpp == load("embedded").expected_mpp == 1.0


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet", "test_efficientnet"])
def test_convolutional_networks_are_unchanged(name: str) -> None:
    small, default = load(name, 64, pretrained=False), load(name, pretrained=False)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(small.module(images), default.module(images))
    assert (small.preprocess.size, default.preprocess.size) == (64, 160)
    assert small.preprocess.resize_to == int(64 / 0.95)  # crop_pct of these models
    assert small.timm is not None and "img_size" not in small.timm.model_args


@pytest.mark.parametrize("kind", ["ViT", "Dinov2", "Dinov2WithRegisters"])
@pytest.mark.parametrize("pixels", [16, 40])
def test_transformers_models_match_their_own_interpolation(
    vision_folders: dict[str, Path], kind: str, pixels: int
) -> None:
    import transformers

    reference = getattr(transformers, f"{kind}Model").from_pretrained(vision_folders[kind]).eval()
    images = torch.randn(2, 3, pixels, pixels)
    options = {"interpolate_pos_encoding": True} if kind == "ViT" else {}  # DINOv2 always interpolates
    cls, both = (load(vision_folders[kind], pixels, pooling=pooling) for pooling in ("cls", "cls_mean"))
    with torch.no_grad():
        tokens = reference(pixel_values=images, **options).last_hidden_state
        torch.testing.assert_close(cls.module(images), tokens[:, 0])
        patches = tokens[:, -((pixels // 8) ** 2) :].mean(dim=1)
        torch.testing.assert_close(both.module(images), torch.cat([tokens[:, 0], patches], dim=1))


def test_dinov2_trained_at_a_larger_size_than_that_of_its_processor(tmp_path: Path) -> None:
    folder = save_vit(tmp_path / "dinov2", "Dinov2", image_size=64)
    images = torch.randn(2, 3, 16, 16)
    expected = load(folder).module.trunk(pixel_values=images).last_hidden_state[:, 0]
    torch.testing.assert_close(load(folder, 16).module(images), expected)


@pytest.mark.parametrize(
    ("name", "pixels", "message"),
    [
        ("test_vit", 100, r"(?s)100 is not a multiple of the patch size of 16 pixels.*set backbone\.pixels=96"),
        ("test_vit", 8, r"8 pixels are too few: the model needs 16 or more"),
        ("test_convnext", 16, r"16 pixels are too few: the model needs 32 or more"),
        ("resmlp_12_224", 96, r"(?s)an input size of 96 pixels is not supported.*remove backbone\.pixels.*224"),
        ("swin_s3_tiny_224", 112, r"(?s)an input size of 112 pixels is not supported: timm builds a different model"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:timm")
def test_unsupported_sizes_of_timm_models_are_errors(name: str, pixels: int, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load(name, pixels, pretrained=False)
    assert f"backbone.pixels, for {name}" in str(caught.value)


def test_unsupported_sizes_of_transformers_models_are_errors(vision_folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import BeitConfig, BeitModel

    with pytest.raises(ModelError, match="20 is not a multiple of the patch size of 8 pixels"):
        load(vision_folders["ViT"], 20)
    with pytest.raises(ModelError, match="4 pixels are too few"):
        load(vision_folders["Dinov2"], 4)
    folder = save_vit(tmp_path / "beit", "ViT")
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    # BEiT has no absolute position embeddings.
    BeitModel(BeitConfig(image_size=32, patch_size=8, **small)).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"(?s)of a kind that clipit cannot resample.*remove backbone\.pixels"):
        load(folder, 16)


def test_named_models_are_checked_at_their_default_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec(
        name="tiny-vit", kind="backbone", family="transformers", source="someone/vit", dim=32, pixels=32, mean=HALF,
        std=HALF, expected_mpp=0.5, pooling="cls",
    )  # fmt: skip
    monkeypatch.setattr(backbones, "BACKBONES", MappingProxyType({"tiny-vit": spec, "other": replace(spec, pixels=16)}))
    path = str(save_vit(tmp_path / "vit", "ViT"))
    backbone = load("tiny-vit", 16, path=path)
    assert (backbone.preprocess.size, backbone.expected_mpp) == (16, 0.5)
    with pytest.raises(ModelError, match="pixels is 32, but the table says 16"):
        load("other", 16, path=path)


@pytest.mark.parametrize(
    ("family", "pixels", "pooling"),
    [
        ("embedded", 32, "default"),
        ("fused", 48, "default"),
        ("registers", 16, "cls_mean"),
        ("test_convnext", 64, "default"),
        ("ViT", 16, "default"),
        ("Dinov2WithRegisters", 40, "cls_mean"),
    ],
)
def test_an_export_gives_equal_logits_in_clipit_timm_and_transformers(
    tmp_path: Path, vision_folders: dict[str, Path], pictures: list[Image.Image], family: str, pixels: int, pooling: str
) -> None:
    from transformers import pipeline

    backbone = load(
        vision_folders.get(family, family), pixels, pooling=pooling, pretrained=not family.startswith("test_")
    )
    targets = ("mlp",) if family == "test_convnext" else LoraConfig().targets
    lora = LoraConfig(rank=2, targets=targets)
    student = build_student(backbone, StudentConfig(), lora, "lora", n_classes=3, joint_dim=24)
    for weight in student.parameters():
        if weight.requires_grad:
            weight.data.add_(0.1 * torch.randn_like(weight))
    tiles = np.stack([backbone.preprocess.pixels(picture) for picture in pictures])
    inputs = backbone.preprocess.normalise(torch.from_numpy(tiles))
    assert inputs.shape[2:] == (pixels, pixels)
    with torch.no_grad():
        expected = student.eval()(inputs).logits
    folder = export_classifier(student, backbone, tmp_path / "c", classes=CLASSES)
    classifier = clipit.load_classifier(folder, device="cpu")
    assert classifier.spec.preprocess == backbone.preprocess
    torch.testing.assert_close(classifier.forward(inputs)[0], expected, atol=1e-4, rtol=1e-4)
    probabilities = expected.double().softmax(1).numpy()
    np.testing.assert_allclose(classifier.predict_proba(pictures), probabilities, atol=1e-4)
    # Loaded as a frozen backbone, it already has this input size.
    reloaded = load(folder, pooling=classifier.spec.pooling)
    assert reloaded.preprocess.hash == backbone.preprocess.hash
    if classifier.spec.plain:
        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.no_grad():
            torch.testing.assert_close(model(inputs), expected, atol=1e-4, rtol=1e-4)
        assert timm.data.resolve_model_data_config(model)["input_size"][-1] == pixels
        answers = pipeline("image-classification", model=str(folder))(pictures[:1], top_k=3)[0]
        scores = {answer["label"]: answer["score"] for answer in answers}
        np.testing.assert_allclose([scores[name] for name in CLASSES], probabilities[0], atol=1e-3)
