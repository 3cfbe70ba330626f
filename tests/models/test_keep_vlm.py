"""Test that loading KEEP, whose code replaces a class of timm, leaves timm unchanged."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from timm.models import vision_transformer
from tiny_models import save_keep

from clipit.config.run import VLMConfig
from clipit.models.vlm import load_vlm
from clipit.models.vlm_specs import VLMS

_TOWER = {"img_size": 32, "patch_size": 8, "embed_dim": 20, "depth": 1, "num_heads": 2, "num_classes": 0}
_REPLACES_LAYER_SCALE = f"""
import timm


class RenameLayerScale(nn.Module):
    def __init__(self, dim, init_values=1e-5, inplace=False):
        super().__init__()
        self.inplace = inplace
        self.weight = nn.Parameter(init_values * torch.ones(dim))

    def forward(self, x):
        return x.mul_(self.weight) if self.inplace else x * self.weight


timm.models.vision_transformer.LayerScale = RenameLayerScale


def Eye():
    return timm.create_model("vit_tiny_patch16_224", init_values=1e-5, **{_TOWER!r})


class KeepModel("""


@pytest.fixture(autouse=True)
def original_layer_scale() -> Iterator[type]:
    before = vision_transformer.LayerScale
    yield before
    vision_transformer.LayerScale = before


def test_loading_keep_does_not_change_timm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, original_layer_scale: type
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "keep_scales").mkdir()
    folder = save_keep(tmp_path / "keep_scales")
    code = (folder / "modeling_keep.py").read_text()
    (folder / "modeling_keep.py").write_text(code.replace("class KeepModel(", _REPLACES_LAYER_SCALE, 1))
    torch.manual_seed(0)
    tower = timm.create_model("vit_tiny_patch16_224", init_values=0.5, **_TOWER).state_dict()
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    weights = {name: value for name, value in weights.items() if not name.startswith("visual.")}
    weights |= {f"visual.{name.replace('gamma', 'weight')}": value for name, value in tower.items()}
    torch.save(weights, folder / "pytorch_model.bin")
    monkeypatch.setitem(VLMS, "keep", replace(VLMS["keep"], dim=16, raw_dim=20, pixels=32, context_length=24))

    config = VLMConfig(name="keep", path=str(folder), trust_remote_code=True)
    first, second = load_vlm(config), load_vlm(config)  # transformers imports the code once
    assert first.fingerprint == second.fingerprint
    assert first.towers.module.state_dict()["visual.blocks.0.ls1.weight"].tolist() == [0.5] * 20
    assert vision_transformer.LayerScale is original_layer_scale
    other = timm.create_model("vit_tiny_patch16_224", init_values=1e-5, **_TOWER)
    assert "blocks.0.ls1.gamma" in other.state_dict()
