import os
import shutil
from pathlib import Path

import pytest
import timm
import torch

from clipit.config import BackboneConfig
from clipit.errors import ModelError
from clipit.models.backbones import build_timm, load_backbone
from clipit.models.loading import EMBEDDED


def test_folder(timm_folder: Path) -> None:
    backbone = load_backbone(BackboneConfig(name=str(timm_folder)))
    reference = timm.create_model(f"local-dir:{timm_folder}", pretrained=True, num_classes=0).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(backbone.module(pixels), reference(pixels))
    assert (backbone.dim, backbone.expected_mpp, backbone.plain_head) == (32, 0.5, True)
    assert (backbone.preprocess.size, backbone.preprocess.mean) == (32, (0.5, 0.5, 0.5))
    assert "num_classes" not in backbone.timm.model_args
    assert build_timm(backbone.timm, 5).get_classifier().out_features == 5


def test_random_weights_follow_the_seed() -> None:
    config = BackboneConfig(name="test_vit", pretrained=False)
    torch.manual_seed(3)
    first = load_backbone(config)
    torch.manual_seed(3)
    assert load_backbone(config).fingerprint == first.fingerprint != load_backbone(config).fingerprint
    assert first.expected_mpp is None


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit3"])
def test_other_families(name: str) -> None:
    backbone = load_backbone(BackboneConfig(name=name, pretrained=False))
    size = backbone.preprocess.size
    assert backbone.plain_head
    assert backbone.module(torch.zeros(2, 3, size, size)).shape == (2, backbone.dim)


def test_errors(timm_folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="vit_small_patch16_224"):
        load_backbone(BackboneConfig(name="vit_smal_patch16_224"))
    with pytest.raises(ModelError, match="key architecture"):
        load_backbone(BackboneConfig(name=str(clip_folder)))
    with pytest.raises(ModelError, match="hub cannot be reached"):
        load_backbone(BackboneConfig(name="test_vit"))
    with pytest.raises(ModelError, match=r"https://huggingface\.co/MahmoodLab/UNI"):
        load_backbone(BackboneConfig(name="hf-hub:MahmoodLab/UNI"))
    copy = Path(shutil.copytree(timm_folder, tmp_path / "copy"))
    (copy / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_backbone(BackboneConfig(name=str(copy)))
    (copy / "model.safetensors").unlink()
    torch.save({"head": os.path.join}, copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only tensors are loaded"):
        load_backbone(BackboneConfig(name=str(copy)))
    (copy / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match="no weights"):
        load_backbone(BackboneConfig(name=str(copy)))


@pytest.mark.skipif(not (EMBEDDED / "backbone" / "config.json").is_file(), reason="the embedded backbone is not there")
def test_embedded() -> None:
    assert load_backbone(BackboneConfig()).plain_head
