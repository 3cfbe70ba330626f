import json
import os
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tiny_backbones import save_vit

from clipit.config.run import BackboneConfig
from clipit.errors import ModelError
from clipit.models.backbones import load_backbone
from clipit.models.loading import EMBEDDED
from clipit.models.timm_backbones import build_timm
from clipit.models.trunks import cpu_parts


def test_a_timm_folder_gives_the_features_of_timm(timm_folder: Path) -> None:
    backbone = load_backbone(BackboneConfig(name=str(timm_folder)))
    reference = timm.create_model(f"local-dir:{timm_folder}", pretrained=True, num_classes=0).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(backbone.module(pixels), reference(pixels), rtol=0, atol=1e-6)
    assert (backbone.dim, backbone.expected_mpp, backbone.plain_head) == (32, 0.5, True)
    assert (backbone.preprocess.size, backbone.preprocess.mean) == (32, (0.5, 0.5, 0.5))
    assert "num_classes" not in backbone.timm.model_args
    assert build_timm(backbone.timm, 5).get_classifier().out_features == 5


def test_random_weights_depend_on_the_seed() -> None:
    config = BackboneConfig(name="test_vit", pretrained=False)
    first = load_backbone(config, seed=3)
    assert load_backbone(config, seed=3).fingerprint == first.fingerprint != load_backbone(config, seed=4).fingerprint
    assert first.expected_mpp is None


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit3"])
def test_other_timm_families_can_be_loaded(name: str) -> None:
    backbone = load_backbone(BackboneConfig(name=name, pretrained=False))
    size = backbone.preprocess.size
    assert backbone.plain_head
    assert backbone.module(torch.zeros(2, 3, size, size)).shape == (2, backbone.dim)


def test_errors_for_unusable_backbones(
    timm_folder: Path, clip_folder: Path, open_clip_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="vit_small_patch16_224"):
        load_backbone(BackboneConfig(name="vit_smal_patch16_224"))
    with pytest.raises(ModelError, match="image-text model"):
        load_backbone(BackboneConfig(name=str(clip_folder)))
    with pytest.raises(ModelError, match="key architecture"):
        load_backbone(BackboneConfig(name=str(open_clip_folder)))
    with pytest.raises(ModelError, match="Hub cannot be reached"):
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


@pytest.mark.skipif(not (EMBEDDED / "backbone" / "config.json").is_file(), reason="the bundled backbone is missing")
def test_position_embeddings_are_not_resampled_silently(timm_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(timm_folder, tmp_path / "timm"))
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["img_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ModelError, match=r"do not fit config.json: pos_embed is \(1, 17, 32\) in the file, but \(1, 65"
    ):
        load_backbone(BackboneConfig(name=str(folder)))
    assert load_backbone(BackboneConfig(name=str(timm_folder), pixels=64)).preprocess.size == 64


def test_the_bundled_backbone() -> None:
    assert load_backbone(BackboneConfig()).plain_head


@pytest.mark.parametrize("kind", ["ViT", "Dinov2", "Dinov2WithRegisters"])
def test_a_transformers_folder_gives_the_tokens_of_transformers(vision_folders: dict[str, Path], kind: str) -> None:
    import transformers

    folder = vision_folders[kind]
    backbone = load_backbone(BackboneConfig(name=str(folder)))
    both = load_backbone(BackboneConfig(name=f"transformers:{folder}", pooling="cls_mean"))
    reference = getattr(transformers, f"{kind}Model").from_pretrained(folder).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = reference(pixel_values=pixels).last_hidden_state
        patches = tokens[:, -16:]  # registers come before the patches
        torch.testing.assert_close(backbone.module(pixels), tokens[:, 0])
        torch.testing.assert_close(both.module(pixels), torch.cat([tokens[:, 0], patches.mean(dim=1)], dim=1))
    assert (backbone.dim, both.dim, backbone.timm, backbone.plain_head) == (32, 64, None, False)
    assert (backbone.preprocess.size, backbone.preprocess.mean) == (32, (0.5, 0.5, 0.5))
    assert backbone.fingerprint != both.fingerprint and not backbone.remote_code


def test_class_token_pooling_of_timm_models(vision_folders: dict[str, Path]) -> None:
    name = str(vision_folders["tokens"])
    with pytest.raises(ModelError, match=r"backbone\.pooling: cls or cls_mean"):
        load_backbone(BackboneConfig(name=name))
    cls = load_backbone(BackboneConfig(name=name, pooling="cls"))
    both = load_backbone(BackboneConfig(name=name, pooling="cls_mean"))
    assert (cls.dim, both.dim, cls.plain_head, both.plain_head) == (32, 64, True, False)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(both.module(pixels)[:, :32], cls.module(pixels))
    for other in ("test_resnet", "test_vit3"):
        with pytest.raises(ModelError, match="no class token"):
            load_backbone(BackboneConfig(name=other, pretrained=False, pooling="cls_mean"))


def test_errors_for_damaged_transformers_folders(vision_folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"(?s)Hub cannot be reached.*https://huggingface\.co/owkin/phikon"):
        load_backbone(BackboneConfig(name="transformers:owkin/phikon"))
    copy = Path(shutil.copytree(vision_folders["Dinov2"], tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    save_file({key: value for key, value in weights.items() if "key.bias" not in key}, copy / "model.safetensors")
    with pytest.raises(ModelError, match="do not match the model"):
        load_backbone(BackboneConfig(name=str(copy)))
    save_file({**weights, "layernorm.weight": torch.ones(31)}, copy / "model.safetensors")
    with pytest.raises(ModelError, match=r"layernorm\.weight|mismatch"):
        load_backbone(BackboneConfig(name=str(copy)))
    save_file(weights, copy / "model.safetensors")
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"preprocessor_config\.json"):
        load_backbone(BackboneConfig(name=str(copy)))
    wrong_size = save_vit(tmp_path / "size", "ViT", image_size=64)
    with pytest.raises(ModelError, match="input size is 32"):
        load_backbone(BackboneConfig(name=str(wrong_size)))


def test_a_text_model_is_not_a_backbone(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="not images"):
        load_backbone(BackboneConfig(name=str(tmp_path)))


def test_remote_code_runs_on_request_only(remote_code_folder: Path) -> None:
    name = str(remote_code_folder)
    with pytest.raises(ModelError, match=r"backbone\.trust_remote_code: true"):
        load_backbone(BackboneConfig(name=name))
    backbone = load_backbone(BackboneConfig(name=name, trust_remote_code=True))
    assert backbone.remote_code and backbone.dim == 32
    description = json.loads((remote_code_folder / "config.json").read_text())
    (remote_code_folder / "config.json").write_text(json.dumps({**description, "model_type": None}))
    with pytest.raises(ModelError):
        load_backbone(BackboneConfig(name=name))


def test_large_batches_are_divided_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.arange(300.0).view(300, 1, 1, 1).expand(300, 3, 64, 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert [len(part) for part in cpu_parts(pixels)] == [60] * 5
    assert torch.equal(torch.cat(cpu_parts(pixels)), pixels)
    assert [len(part) for part in cpu_parts(pixels[:64])] == [64]
    assert [len(part) for part in cpu_parts(torch.zeros(3, 3, 1024, 1024))] == [1, 1, 1]
    assert [len(part) for part in cpu_parts(torch.zeros(0, 3, 64, 64))] == [0]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 9)
    assert [len(part) for part in cpu_parts(pixels)] == [300]
