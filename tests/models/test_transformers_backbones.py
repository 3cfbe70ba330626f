"""Test transformers backbones that differ from ViT in tokens, position embeddings or files: CLIP, DINOv3, Hibou."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_backbones import save_hibou
from transformers import AutoModel

import clipit
from clipit.config.run import BackboneConfig, LoraConfig, StudentConfig
from clipit.errors import ModelError
from clipit.models.backbones import Backbone, load_backbone
from clipit.models.export_classifier import export_classifier
from clipit.models.student import build_student

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def save(folder: Path, kind: str, **changes: Any) -> Path:
    torch.manual_seed(3)
    config = getattr(transformers, f"{kind}Config")(image_size=32, patch_size=8, **SIZES, **changes)
    model = getattr(transformers, f"{kind}Model")(config)
    for name, weight in model.named_parameters():
        if "norm" in name:  # initialised as the identity
            torch.nn.init.normal_(weight, mean=1)
    model.save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder
    )
    return folder


def logits_before_and_after_export(backbone: Backbone, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of a student and of its exported classifier."""
    student = build_student(backbone, StudentConfig(), LoraConfig(rank=2), "lora", n_classes=3, joint_dim=8)
    export_classifier(student.eval(), backbone, folder, classes=("a", "b", "c"))
    pixels = torch.randn(2, 3, backbone.preprocess.size, backbone.preprocess.size)
    with torch.no_grad():
        return student(pixels).logits, clipit.load_classifier(folder, "cpu").forward(pixels)[0]


@pytest.mark.parametrize("pooling", ["default", "cls_mean"])
def test_tokens_of_clip_vision_models_are_normalised(tmp_path: Path, pooling: str) -> None:
    folder = save(tmp_path / "clip", "CLIPVision")
    backbone = load_backbone(BackboneConfig(name=str(folder), pooling=pooling))  # type: ignore[arg-type]
    model, pixels = AutoModel.from_pretrained(folder).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        output, features = model(pixel_values=pixels), backbone.module(pixels)
        torch.testing.assert_close(features[:, :32], output.pooler_output)
        if pooling == "cls_mean":
            means = model.post_layernorm(output.last_hidden_state)[:, 1:].mean(1)
            torch.testing.assert_close(features[:, 32:], means)
    student, classifier = logits_before_and_after_export(backbone, tmp_path / "c")
    torch.testing.assert_close(classifier, student, atol=1e-4, rtol=1e-4)


def test_tokens_of_other_models_are_normalised_once(vision_folders: dict[str, Path]) -> None:
    for family in ("ViT", "Dinov2"):
        module = load_backbone(BackboneConfig(name=str(vision_folders[family]))).module
        assert module.normalise is False
        model, pixels = AutoModel.from_pretrained(vision_folders[family]).eval(), torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(module(pixels), model(pixel_values=pixels).last_hidden_state[:, 0])


def test_dinov3_supports_other_input_sizes(tmp_path: Path) -> None:
    folder = save(tmp_path / "dinov3", "DINOv3ViT", num_register_tokens=2)
    backbone = load_backbone(BackboneConfig(name=str(folder), pixels=48))
    model, pixels = AutoModel.from_pretrained(folder).eval(), torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(backbone.module(pixels), model(pixel_values=pixels).last_hidden_state[:, 0])
    student, classifier = logits_before_and_after_export(backbone, tmp_path / "c")
    torch.testing.assert_close(classifier, student, atol=1e-4, rtol=1e-4)
    assert load_backbone(BackboneConfig(name=str(tmp_path / "c"))).preprocess.size == 48
    with pytest.raises(ModelError, match="not a multiple of the patch size"):
        load_backbone(BackboneConfig(name=str(folder), pixels=50))


def test_hibou_is_loaded_without_its_code(tmp_path: Path) -> None:
    timm_model, folder = save_hibou(tmp_path / "hibou"), str(tmp_path / "hibou")
    for pixels in (None, 48):
        backbone = load_backbone(BackboneConfig(name=folder, pooling="cls_mean", pixels=pixels))
        images = torch.randn(2, 3, pixels or 32, pixels or 32)
        with torch.no_grad():
            tokens = timm_model.forward_features(images)
            expected = torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], dim=1)
            torch.testing.assert_close(backbone.module(images), expected, atol=1e-5, rtol=1e-4)
    assert (backbone.remote_code, backbone.preprocess.mean) == (False, (0.7068, 0.5755, 0.722))


@pytest.mark.parametrize(
    ("renamed", "change", "message"),
    [
        ("embeddings.register_tokens", {}, r"register_tokens is missing.*renamed is not in the model"),
        ("embeddings.mask_token", {}, "renamed is not in the model"),
        ("", {"num_attention_heads": None}, "num_attention_heads is missing"),
        ("", {"num_register_tokens": 8}, r"register_tokens is \(1, 4, 32\) in the file, but \(1, 8, 32\)"),
        ("", {"interpolate_offset": 0.1}, "position embeddings are of a kind"),
        ("", {"interpolate_antialias": False}, "position embeddings are of a kind"),
    ],
)
def test_inconsistent_hibou_files_are_errors(
    tmp_path: Path, renamed: str, change: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "hibou"
    save_hibou(folder)
    config = {**json.loads((folder / "config.json").read_text()), **change}
    remaining = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(remaining))
    weights = load_file(folder / "model.safetensors")
    names = {name: "renamed" if name == renamed else name for name in weights}
    save_file({names[name]: weights[name] for name in weights}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=message):
        load_backbone(BackboneConfig(name=str(folder), pixels=48))


def test_a_missing_key_in_the_preprocessor_configuration_is_an_error(
    vision_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(vision_folders["ViT"], tmp_path / "vit"))
    file = folder / "preprocessor_config.json"
    config = json.loads(file.read_text())
    for key in ("image_mean", "size"):
        file.write_text(json.dumps({name: value for name, value in config.items() if name != key}))
        with pytest.raises(ModelError, match=rf"(?s)no '{key}' in this file; its keys are .*preprocessor_config\.json"):
            load_backbone(BackboneConfig(name=str(folder)))


def test_a_configuration_with_fewer_layers_than_the_weights_is_an_error(
    vision_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(vision_folders["ViT"], tmp_path / "vit"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(ModelError, match=r"do not match.*1\..* is not in the model"):
        load_backbone(BackboneConfig(name=str(folder)))
