"""Test errors for weights files that do not match the model, which must never be partly random."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tiny_backbones import TINY, save_vit

from clipit.config.run import BackboneConfig, VLMConfig
from clipit.errors import ModelError
from clipit.models.backbone_specs import BACKBONES
from clipit.models.backbones import load_backbone
from clipit.models.specs import HALF, ModelSpec
from clipit.models.vlm import load_vlm
from clipit.models.weights import check_unquantised, tensor_shapes

Weights = dict[str, torch.Tensor]


@pytest.fixture
def tiny_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Weights:
    """Add `tiny-uni` to the table, and return weights for it."""
    spec = ModelSpec(
        name="tiny-uni", kind="backbone", family="timm", source="someone/uni", dim=32, pixels=32, mean=HALF, std=HALF,
        page="https://huggingface.co/someone/uni",
        loader={"architecture": "vit_tiny_patch16_224", **TINY, "dynamic_img_size": True},
    )  # fmt: skip
    monkeypatch.setitem(BACKBONES, spec.name, spec)  # type: ignore[attr-defined]
    torch.manual_seed(5)
    return dict(timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY).state_dict())


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def load(name: str, path: Path | None = None) -> Any:
    return load_backbone(BackboneConfig(name=name, path=None if path is None else str(path)))


def test_classifier_weights_in_a_file_are_ignored(tiny_weights: Weights, tmp_path: Path) -> None:
    classes = {"head.weight": torch.zeros(5, 32), "head.bias": torch.zeros(5)}
    backbone = load("tiny-uni", save(tmp_path / "f.bin", tiny_weights | classes))
    for key, value in backbone.module.state_dict().items():
        assert torch.equal(value, tiny_weights[key])


def test_a_file_of_other_tensors_is_an_error(tiny_weights: Weights, tmp_path: Path) -> None:
    file = save(tmp_path / "f.bin", {"foo": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"(?s)30 missing: .*blocks\.0.* 1 unexpected: foo.*where: .*f\.bin"):
        load("tiny-uni", file)


def test_missing_and_unexpected_tensors_are_errors(tiny_weights: Weights, tmp_path: Path) -> None:
    short = {key: value for key, value in tiny_weights.items() if key != "blocks.1.mlp.fc1.bias"}
    with pytest.raises(ModelError, match=r"1 missing: blocks\.1\.mlp\.fc1\.bias\n"):
        load("tiny-uni", save(tmp_path / "short.bin", short))
    save_file(tiny_weights | {"blocks.2.norm1.bias": torch.zeros(32)}, tmp_path / "deep.safetensors")
    with pytest.raises(ModelError, match=r"(?s)1 unexpected: blocks\.2\.norm1\.bias.*deep\.safetensors"):
        load("tiny-uni", tmp_path / "deep.safetensors")


def test_prefixed_and_wrapped_checkpoints_are_errors(tiny_weights: Weights, tmp_path: Path) -> None:
    prefixed = {f"encoder.{key}": value for key, value in tiny_weights.items()}
    with pytest.raises(ModelError, match=r"unexpected: encoder\.blocks\.0"):
        load("tiny-uni", save(tmp_path / "prefixed.bin", prefixed))
    for wrapper in (
        {"teacher": tiny_weights, "student": tiny_weights},
        {"state_dict": tiny_weights},
        {"model": tiny_weights, "epoch": 3},
    ):
        file = save(tmp_path / "wrapped.bin", wrapper)
        with pytest.raises(ModelError, match=rf"(?s)contains more than tensors: {next(iter(wrapper))}.*wrapped\.bin"):
            load("tiny-uni", file)


@pytest.mark.parametrize("suffix", ["bin", "safetensors", "old"])
def test_tensor_shapes_of_each_file_format(tiny_weights: Weights, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(tiny_weights, file)
    else:
        torch.save(tiny_weights, file, _use_new_zipfile_serialization=suffix == "bin")
    assert tensor_shapes(file) == {key: tuple(value.shape) for key, value in tiny_weights.items()}


def test_weights_are_checked_if_the_number_of_classes_differs(timm_folder: Path, tmp_path: Path) -> None:
    """timm loads weights without strict checks if the number of classes differs."""
    folder = Path(shutil.copytree(timm_folder, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    config["num_classes"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    assert load(str(folder)).dim == 32
    weights = load_file(folder / "model.safetensors")
    renamed = {key.replace("blocks.", "layers."): value for key, value in weights.items()}
    save_file(renamed, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"missing: blocks\.0.* unexpected: layers\.0"):
        load(str(folder))


def test_patch_embeddings_of_a_different_size_are_an_error(tiny_weights: Weights, tmp_path: Path) -> None:
    torch.manual_seed(6)
    other = timm.create_model("vit_tiny_patch16_224", num_classes=0, **{**TINY, "patch_size": 16})
    with pytest.raises(ModelError, match=r"(?s)patches of \(16, 16\) pixels in the file, but \(8, 8\) in the model"):
        load("tiny-uni", save(tmp_path / "other.bin", dict(other.state_dict())))


def test_a_folder_of_a_different_architecture_is_an_error(
    tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = {key: value for key, value in TINY.items() if key != "patch_size"}
    spec = replace(BACKBONES["tiny-uni"], loader={"architecture": "vit_small_patch16_224", **arguments})
    monkeypatch.setitem(BACKBONES, "tiny-16", spec)  # type: ignore[attr-defined]
    overlay = {"input_size": (3, 32, 32), "mean": HALF, "std": HALF}
    for architecture, matches in (("vit_small_patch16_224", True), ("vit_small_patch32_224", False)):
        folder = tmp_path / architecture
        model = timm.create_model(architecture, num_classes=0, pretrained_cfg_overlay=overlay, **arguments)
        timm.models.save_for_hf(model, str(folder), safe_serialization=True)
        if matches:
            assert load("tiny-16", folder).dim == 32
            continue
        with pytest.raises(
            ModelError, match=r"from tiny-uni .*patch_embed\.proj\.weight is \(32, 3, 32, 32\), but .* in the tabl"
        ):
            load("tiny-16", folder)


def test_a_different_number_of_attention_heads_is_an_error(
    tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1}  # 3 heads by default
    loader = {"architecture": "vit_tiny_patch16_224", **arguments}
    monkeypatch.setitem(BACKBONES, "tiny-uni", replace(BACKBONES["tiny-uni"], dim=48, loader=loader))  # type: ignore[attr-defined]
    data = {"input_size": (3, 32, 32)}
    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, num_heads=2, pretrained_cfg_overlay=data, **arguments
    )
    timm.models.save_for_hf(model, str(tmp_path), model_args={**arguments, "num_heads": 2}, safe_serialization=True)
    with pytest.raises(ModelError, match=r"blocks\.0\.attn\.num_heads is \(2,\), but \(3,\) in the table"):
        load("tiny-uni", tmp_path)


def test_transformers_configurations_are_checked_against_the_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    facts = {"model_type": "vit", "num_hidden_layers": 2, "patch_size": 8}
    spec = replace(BACKBONES["phikon"], dim=32, pixels=32, mean=HALF, std=HALF, loader={"facts": facts})
    monkeypatch.setitem(BACKBONES, "phikon", spec)  # type: ignore[attr-defined]
    assert load("phikon", save_vit(tmp_path / "right", "ViT")).dim == 32
    shallow = save_vit(tmp_path / "shallow", "Dinov2", num_hidden_layers=1)
    with pytest.raises(ModelError, match="model_type is dinov2, but the table says vit; num_hidden_layers is 1,"):
        load("phikon", shallow)


def test_tensors_of_different_shapes_are_named_for_transformers(
    vision_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(vision_folders["ViT"], tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(ModelError) as caught:
        load(str(folder))
    assert "is (64, 32) in the file, but (48, 32) in the model" in str(caught.value)
    assert "intermediate" in str(caught.value) or "fc1" in str(caught.value)


def test_missing_paths_and_damaged_files_are_errors(tiny_weights: Weights, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"(?s)backbone\.path does not exist.*gone"):
        load("tiny-uni", tmp_path / "gone")
    (tmp_path / "f.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ModelError, match=r"(?s)model tiny-uni: it cannot be loaded.*where: .*f\.safetensors"):
        load("tiny-uni", tmp_path / "f.safetensors")


def test_the_hub_prefix_before_a_local_folder(timm_folder: Path) -> None:
    backbone = load(f"hf-hub:{timm_folder}")
    assert backbone.fingerprint == load(str(timm_folder)).fingerprint
    assert backbone.public_name == "vit_tiny_patch16_224"


def test_unexpected_weights_are_an_error_without_warnings_of_timm(
    timm_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(timm_folder, tmp_path / "timm"))
    weights = load_file(folder / "model.safetensors")
    save_file({f"backbone.{name}": value for name, value in weights.items()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"missing: .*blocks\.0.* unexpected: backbone\.blocks\.0"):
        load_backbone(BackboneConfig(name=str(folder)))
    assert not caplog.records


@pytest.mark.parametrize("kind", ["timm", "vit", "clip"])
def test_weights_that_are_not_finite_are_errors(
    kind: str, timm_folder: Path, clip_folder: Path, vision_folders: dict[str, Path], tmp_path: Path
) -> None:
    source = {"timm": timm_folder, "clip": clip_folder, "vit": vision_folders["ViT"]}[kind]
    folder = Path(shutil.copytree(source, tmp_path / kind))
    weights = load_file(folder / "model.safetensors")
    name = next(key for key in sorted(weights) if key.endswith("patch_embed.proj.weight") or "projection.weight" in key)
    save_file({**weights, name: weights[name] * float("nan")}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"(?s)weights are not finite: \S*{name.split('.')[-2]}.*{folder.name}"):
        _ = load_vlm(VLMConfig(name=str(folder))) if kind == "clip" else load_backbone(BackboneConfig(name=str(folder)))


def test_a_logit_scale_that_is_not_finite_is_an_error(clip_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    weights = load_file(folder / "model.safetensors")
    weights["logit_scale"] = torch.tensor(1000.0)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"the logit scale must be positive and finite, not inf[\s\S]*logit_scale"):
        load_vlm(VLMConfig(name=str(folder)))


def quantised(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Quantise a tensor like bitsandbytes, without the scale."""
    return tensor.to(dtype) if dtype.is_floating_point else (tensor / tensor.abs().max() * 127).to(dtype)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int32])
@pytest.mark.parametrize("kind", ["timm", "vit", "clip", "open_clip"])
def test_quantised_weights_are_errors(
    kind: str,
    dtype: torch.dtype,
    timm_folder: Path,
    clip_folder: Path,
    open_clip_folder: Path,
    vision_folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    source = {"timm": timm_folder, "clip": clip_folder, "vit": vision_folders["ViT"], "open_clip": open_clip_folder}
    folder = Path(shutil.copytree(source[kind], tmp_path / kind))
    file = next(folder.glob("*.safetensors"))
    weights = load_file(file)
    name = next(key for key in sorted(weights) if key.endswith(".weight") and weights[key].ndim == 2)
    save_file({**weights, name: quantised(weights[name], dtype)}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=rf"(?s)the weights are quantised.*: {re.escape(name)} is .*unquantised"):
        if "clip" in kind:
            load_vlm(VLMConfig(name=str(folder)))
        else:
            load_backbone(BackboneConfig(name=str(folder)))


def test_a_quantised_weights_file_is_an_error(tiny_weights: Weights, tmp_path: Path) -> None:
    name = "blocks.0.attn.qkv.weight"
    file = save(tmp_path / "f.bin", tiny_weights | {name: quantised(tiny_weights[name], torch.int8)})
    with pytest.raises(ModelError, match=rf"(?s)quantised.*: {name} is torch\.int8\n.*where: .*f\.bin"):
        load("tiny-uni", file)


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_a_quantised_configuration_is_an_error(
    kind: str, clip_folder: Path, vision_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(clip_folder if kind == "clip" else vision_folders["ViT"], tmp_path / kind))
    config = json.loads((folder / "config.json").read_text())
    quantisation = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantisation}))
    with pytest.raises(ModelError, match=r"(?s)according to quantization_config in config\.json.*unquantised"):
        _ = load_vlm(VLMConfig(name=str(folder))) if kind == "clip" else load(str(folder))


def test_counters_and_indices_may_be_integers() -> None:
    integers = {
        "norm.num_batches_tracked": torch.tensor(3),
        "position_ids": torch.arange(4),
        "mask": torch.tensor([True]),
    }
    check_unquantised({**integers, "embeddings.relative_position_index": "I64", "proj.weight": "BF16"}, "a file")
