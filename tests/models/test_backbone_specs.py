from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import resolve_data_config
from timm.layers import SwiGLUPacked
from tiny_backbones import TINY, save_vit

from clipit.config.run import BackboneConfig
from clipit.errors import ModelError
from clipit.models.backbone_specs import BACKBONES
from clipit.models.backbones import Backbone, load_backbone
from clipit.models.loading import expected_mpp
from clipit.models.preprocess import preprocess_from_timm
from clipit.models.specs import HALF, ModelSpec
from clipit.models.timm_backbones import build_named, build_timm, load_timm
from clipit.models.trunks import TokenPool

PREFIX = {"uni2-h": 9, "virchow2": 5, "h-optimus-0": 5, "h-optimus-1": 5, "h0-mini": 5, "kaiko-vitl14": 5}
"""Number of prefix tokens, if not 1, as published on the models' pages."""

MILLIONS = {
    "uni": 303.4, "uni2-h": 681.4, "virchow": 631, "virchow2": 631, "h-optimus-0": 1130, "h0-mini": 85.7,
    "prov-gigapath": 1130, "lunit-vit-s": 21.7, "kaiko-vitb8": 86, "kaiko-vitl14": 304,
}  # fmt: skip
"""Published numbers of parameters, an independent check of the arguments in the table."""

TIMM = [spec for spec in BACKBONES.values() if spec.family == "timm"]


def test_the_table_contains_common_backbones() -> None:
    expected = {
        "uni", "uni2-h", "virchow", "virchow2", "phikon", "phikon-v2", "h-optimus-0", "h-optimus-1", "h0-mini",
        "prov-gigapath", "hibou-b", "hibou-l", "midnight", "lunit-vit-s", "kaiko-vits16", "kaiko-vits8", "kaiko-vitb16",
        "kaiko-vitb8", "kaiko-vitl14", "dinov2-vits14", "dinov2-reg-vitg14", "imagenet-vits16",
    }  # fmt: skip
    assert expected <= set(BACKBONES)
    for name, spec in BACKBONES.items():
        assert name == spec.name and spec.kind == "backbone" and spec.page.startswith("https://huggingface.co/")
        assert spec.family in ("timm", "transformers") and name not in timm.list_models()
    assert not BACKBONES["phikon"].gated and BACKBONES["uni"].gated


@pytest.mark.parametrize("spec", TIMM, ids=lambda spec: spec.name)
def test_architectures_match_the_table(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    # Skip the slow initialisation, which has no effect on the meta device.
    monkeypatch.setattr("timm.models.vision_transformer.trunc_normal_", lambda weight, **_: weight)
    with torch.device("meta"):
        module = build_named(spec).eval()
        pooled = module
        if spec.pooling == "cls":
            module.reset_classifier(0, "token")
        if spec.pooling == "cls_mean":
            pooled = TokenPool(module, "timm", module.num_prefix_tokens, "cls_mean")
        weights = sum(weight.numel() for weight in module.parameters()) / 1e6
        module.blocks = module.blocks[:2]  # the other blocks are equal
        with torch.no_grad():
            features = pooled(torch.zeros(1, 3, spec.pixels, spec.pixels))
    assert features.shape == (1, spec.dim)
    registers = 5 if "-reg-" in spec.name else 1
    assert module.num_prefix_tokens == PREFIX.get(spec.name, registers)
    preprocess = preprocess_from_timm(resolve_data_config({}, pretrained_cfg=module.pretrained_cfg), spec.name)
    assert (preprocess.size, preprocess.mean, preprocess.std) == (spec.pixels, spec.mean, spec.std)
    if spec.name == "prov-gigapath":
        assert preprocess.resize_to == 256
    if spec.name in MILLIONS:
        assert weights == pytest.approx(MILLIONS[spec.name], rel=0.01)


@pytest.mark.parametrize("name", ["uni2-h", "virchow", "h0-mini"])
def test_exported_architectures_can_be_rebuilt(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        trunk = load_timm(BackboneConfig(name=name, pretrained=False), BACKBONES[name], "cls", BACKBONES)
        rebuilt = build_timm(trunk.timm, 3)
    shapes = {key: value.shape for key, value in trunk.module.state_dict().items()}
    assert {key: value.shape for key, value in rebuilt.state_dict().items() if not key.startswith("head.")} == shapes
    assert trunk.plain_head and rebuilt.get_classifier().in_features == BACKBONES[name].dim // (
        2 if "vir" in name else 1
    )


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Add `tiny-virchow2` to the table, and return a folder with its weights in timm's format."""
    arguments = {**TINY, "reg_tokens": 4, "mlp_ratio": 5.3375, "init_values": 1e-5, "global_pool": ""}
    swiglu = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
    spec = ModelSpec(
        name="tiny-virchow2", kind="backbone", family="timm", source="someone/tiny", dim=64, pixels=32,
        mean=HALF, std=HALF, expected_mpp=0.5, page="https://huggingface.co/someone/tiny", gated=True,
        pooling="cls_mean", loader={"architecture": "vit_huge_patch14_224", **arguments, **swiglu},
    )  # fmt: skip
    monkeypatch.setitem(BACKBONES, spec.name, spec)  # type: ignore[attr-defined]
    torch.manual_seed(3)
    classes = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}
    data = {"input_size": (3, 32, 32), "mean": HALF, "std": HALF}
    model = timm.create_model(
        "vit_huge_patch14_224", num_classes=0, pretrained_cfg_overlay=data, **arguments, **classes
    )
    model._model_args = arguments  # timm cannot serialise classes as arguments
    timm.models.save_for_hf(model, str(tmp_path), model_args=arguments, safe_serialization="both")
    return tmp_path


def tiny_backbone(path: Path | None, **changes: object) -> Backbone:
    return load_backbone(
        BackboneConfig(name="tiny-virchow2", path=None if path is None else str(path), **changes)  # type: ignore[arg-type]
    )


def test_a_named_backbone_is_loaded_from_local_files(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    backbone = tiny_backbone(tiny)
    assert (backbone.dim, backbone.expected_mpp, backbone.pooling, backbone.plain_head) == (64, 0.5, "cls_mean", False)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = backbone.module(pixels)
        tokens = backbone.module.trunk.forward_features(pixels)
    assert tokens.shape == (2, 1 + 4 + 16, 32)
    for row in range(2):  # class token followed by the mean of the 16 patch tokens
        mean = torch.stack([tokens[row, place] for place in range(5, 21)]).mean(dim=0)
        torch.testing.assert_close(features[row], torch.cat([tokens[row, 0], mean]))
    cls = tiny_backbone(tiny, pooling="cls")
    with torch.no_grad():
        torch.testing.assert_close(cls.module(pixels), tokens[:, 0])
    assert cls.dim == 32 and cls.plain_head and cls.fingerprint != backbone.fingerprint

    weights_file = tmp_path_factory.mktemp("alone") / "weights.bin"
    torch.save(load_file(tiny / "model.safetensors"), weights_file)
    for place in (weights_file, tiny / "pytorch_model.bin"):
        loaded = tiny_backbone(place)
        assert (loaded.preprocess.mean, loaded.preprocess.size, loaded.preprocess.resize_to) == (HALF, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(loaded.module(pixels), features)
    assert tiny_backbone(None, pretrained=False).dim == 64


def test_errors_for_missing_weights_and_unknown_names(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"(?s)Hub cannot be reached.*https://huggingface\.co/someone/tiny"):
        tiny_backbone(None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"(?s)no weights for tiny-virchow2.*https://huggingface\.co/someone/tiny"):
        tiny_backbone(tmp_path / "empty")
    with pytest.raises(ModelError, match=r"backbone\.path"):
        load_backbone(BackboneConfig(name="vit_tiny_patch16_224", path=str(tiny)))
    with pytest.raises(ModelError, match="kaiko-vits16"):
        load_backbone(BackboneConfig(name="kaiko_vits_16"))
    with pytest.raises(ModelError, match=r"(?s)backbone\.name=virchow2 loads this model"):
        load_backbone(BackboneConfig(name="hf-hub:paige-ai/Virchow2"))


def test_files_of_a_different_model_are_errors(
    tiny: Path, vision_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = load_file(tiny / "model.safetensors")
    weights["norm.weight"] = torch.ones(31)
    save_file(weights, tiny / "model.safetensors")
    with pytest.raises(ModelError, match=r"(?s)norm\.weight.*someone/tiny"):
        tiny_backbone(tiny / "model.safetensors")
    with pytest.raises(ModelError, match="tiny-virchow2"):
        tiny_backbone(vision_folders["fused"])
    config = (tiny / "config.json").read_text().replace("0.5", "0.25")
    (tiny / "config.json").write_text(config)
    with pytest.raises(
        ModelError, match=r"(?s)mean is \(0\.25, 0\.25, 0\.25\), but the table says \(0\.5, 0\.5, 0\.5\)"
    ):
        (tiny / "model.safetensors").unlink()  # pytorch_model.bin is intact
        tiny_backbone(tiny)


def test_a_named_transformers_backbone_is_checked_against_the_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared = {"kind": "backbone", "family": "transformers", "source": "someone/vit", "pixels": 32, "expected_mpp": 0.5}
    page = "https://huggingface.co/someone/vit"
    correct = ModelSpec(name="tiny-phikon", dim=32, mean=HALF, std=HALF, pooling="cls", page=page, **shared)  # type: ignore[arg-type]
    wrong = ModelSpec(name="tiny-wrong", dim=48, mean=HALF, std=(0.2, 0.2, 0.2), page=page, **shared)  # type: ignore[arg-type]
    for spec in (correct, wrong):
        monkeypatch.setitem(BACKBONES, spec.name, spec)  # type: ignore[attr-defined]
    folder = save_vit(tmp_path / "vit", "ViT")
    backbone = load_backbone(BackboneConfig(name="tiny-phikon", path=str(folder)))
    assert (backbone.dim, backbone.expected_mpp, backbone.pooling) == (32, 0.5, "cls")
    both = load_backbone(BackboneConfig(name="tiny-phikon", path=str(folder), pooling="cls_mean"))
    assert both.dim == 64
    with pytest.raises(ModelError, match=r"(?s)std is .*the table says \(0\.2, 0\.2, 0\.2\); dim is 32.*says 48"):
        load_backbone(BackboneConfig(name="tiny-wrong", path=str(folder)))
    (folder / "preprocessor_config.json").unlink()
    assert load_backbone(BackboneConfig(name="tiny-phikon", path=str(folder))).preprocess.mean == HALF
    with pytest.raises(ModelError, match=r"(?s)Hub cannot be reached.*https://huggingface\.co/someone/vit"):
        load_backbone(BackboneConfig(name="tiny-phikon"))
    with pytest.raises(ModelError, match=r"backbone\.path does not exist"):
        load_backbone(BackboneConfig(name="tiny-phikon", path=str(tmp_path / "gone")))


def test_expected_mpp_comes_from_the_table() -> None:
    assert expected_mpp("hf-hub:MahmoodLab/UNI") == expected_mpp("owkin/phikon-v2@main") == 0.5
    assert expected_mpp("vit_small_patch16_224") is None
