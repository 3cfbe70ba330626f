"""Table of known backbones."""

from collections.abc import Mapping
from typing import Any

from clipit.models.specs import HALF, IMAGENET_MEAN, IMAGENET_STD, ModelSpec, Triple

_AT_20X = 0.5  # µm per pixel at 20x, the tile magnification in the tables of mahmoodlab/TRIDENT
_HUB = "https://huggingface.co/"
_BIOPTIMUS: dict[str, Triple] = {"mean": (0.707223, 0.578729, 0.703617), "std": (0.211883, 0.230117, 0.177517)}
_LUNIT: dict[str, Triple] = {"mean": (0.70322989, 0.53606487, 0.66096631), "std": (0.21716536, 0.26081574, 0.20723464)}
_HIBOU: dict[str, Triple] = {"mean": (0.7068, 0.5755, 0.722), "std": (0.195, 0.2316, 0.1816)}
_MANY_SCALES = "Trained at several magnifications, so it expects no particular mpp."
_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
_VIRCHOW = {
    "architecture": "vit_huge_patch14_224",
    "img_size": 224,
    "init_values": 1e-5,
    "mlp_ratio": 5.3375,
    "global_pool": "",
    "dynamic_img_size": True,
    **_SWIGLU,
}
_H_OPTIMUS = {
    "architecture": "vit_giant_patch14_reg4_dinov2",
    "img_size": 224,
    "init_values": 1e-5,
    "dynamic_img_size": False,
}


def _spec(name: str, family: str, source: str, dim: int, **more: Any) -> ModelSpec:
    """Make an entry with common defaults: 224 pixels, ImageNet mean and standard deviation, and the Hub page."""
    shared: dict[str, Any] = {
        "pixels": 224,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "page": _HUB + (source if "/" in source else f"timm/{source}"),
    }
    return ModelSpec(name=name, kind="backbone", family=family, source=source, dim=dim, **{**shared, **more})


def _kaiko(name: str, architecture: str, dim: int, img_size: int = 224) -> ModelSpec:
    """Make the entry for a kaiko model converted to timm."""
    return _spec(
        name, "timm", f"1aurent/{architecture}.kaiko_ai_towards_large_pathology_fms", dim,
        mean=HALF, std=HALF, interpolation="bilinear", note=_MANY_SCALES,
        # 224 pixels, even for the model whose position embeddings were trained at 518 pixels
        loader={
            "architecture": architecture, "img_size": img_size, "dynamic_img_size": True,
            "data": {"input_size": (3, 224, 224)},
        },
    )  # fmt: skip


def _dinov2(size: str, letter: str, dim: int, registers: bool) -> ModelSpec:
    """Make the entry for a DINOv2 model trained on natural images, at 224 pixels instead of 518."""
    return _spec(
        f"dinov2-{'reg-' if registers else ''}vit{letter}14", "timm",
        f"vit_{size}_patch14{'_reg4' if registers else ''}_dinov2.lvd142m", dim,
        licence="Apache-2.0", note="Trained on natural images.",
        loader={"img_size": 224, "data": {"input_size": (3, 224, 224)}},
    )  # fmt: skip


def _imagenet(size: str, letter: str, dim: int) -> ModelSpec:
    """Make the entry for a ViT trained on ImageNet labels."""
    return _spec(
        f"imagenet-vit{letter}16", "timm", f"vit_{size}_patch16_224.augreg_in21k_ft_in1k", dim,
        mean=HALF, std=HALF, licence="Apache-2.0", note="Trained on natural images.",
    )  # fmt: skip


def _hibou(name: str, source: str, dim: int, layers: int, heads: int) -> ModelSpec:
    """Make the entry for a Hibou model, which is loaded as transformers' own DINOv2 with registers."""
    return _spec(
        name, "transformers", source, dim,
        **_HIBOU, licence="Apache-2.0", gated=True, pooling="cls",
        loader={
            "facts": {
                "model_type": "dinov2_with_registers", "num_hidden_layers": layers, "num_attention_heads": heads,
                "num_register_tokens": 4, "patch_size": 14,
            },
        },
        note="Loaded as transformers' DINOv2 with registers, without the code in the model's repository. Compared with "
        "the authors' code on GitHub, with random weights; the published weights have not been tested.",
    )  # fmt: skip


_ENTRIES = (
    _spec(
        "uni", "timm", "MahmoodLab/UNI", 1024,
        interpolation="bilinear", expected_mpp=_AT_20X, licence="CC-BY-NC-ND-4.0", gated=True,
        loader={
            "architecture": "vit_large_patch16_224", "img_size": 224, "init_values": 1e-5, "dynamic_img_size": True,
        },
    ),
    _spec(
        "uni2-h", "timm", "MahmoodLab/UNI2-h", 1536,
        interpolation="bilinear", expected_mpp=_AT_20X, licence="CC-BY-NC-ND-4.0", gated=True,
        loader={
            "architecture": "vit_giant_patch14_224", "img_size": 224, "patch_size": 14, "depth": 24,
            "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536, "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True, "reg_tokens": 8, "dynamic_img_size": True, **_SWIGLU,
        },
    ),
    _spec(
        "virchow", "timm", "paige-ai/Virchow", 2560,
        expected_mpp=_AT_20X, licence="Apache-2.0", gated=True, pooling="cls_mean", loader=_VIRCHOW,
        note="Class token (1280) and mean of the patch tokens (1280); backbone.pooling=cls uses only the class token.",
    ),
    _spec(
        "virchow2", "timm", "paige-ai/Virchow2", 2560,
        expected_mpp=_AT_20X, licence="CC-BY-NC-ND-4.0", gated=True, pooling="cls_mean",
        loader={**_VIRCHOW, "reg_tokens": 4},
        note="Class token (1280) and mean of the patch tokens (1280), excluding the 4 register tokens; "
        "backbone.pooling=cls uses only the class token.",
    ),
    _spec(
        "phikon", "transformers", "owkin/phikon", 768,
        interpolation="bilinear", expected_mpp=_AT_20X, licence="Owkin non-commercial", pooling="cls",
        loader={"facts": {"model_type": "vit", "num_hidden_layers": 12, "patch_size": 16}},
    ),
    _spec(
        "phikon-v2", "transformers", "owkin/phikon-v2", 1024,
        interpolation="bilinear", expected_mpp=_AT_20X, licence="Owkin non-commercial", pooling="cls",
        loader={"facts": {"model_type": "dinov2", "num_hidden_layers": 24, "patch_size": 16}},
    ),
    _spec(
        "h-optimus-0", "timm", "bioptimus/H-optimus-0", 1536,
        **_BIOPTIMUS, expected_mpp=_AT_20X, licence="Apache-2.0", loader=_H_OPTIMUS,
    ),
    _spec(
        "h-optimus-1", "timm", "bioptimus/H-optimus-1", 1536,
        **_BIOPTIMUS, expected_mpp=_AT_20X, licence="CC-BY-NC-ND-4.0", gated=True, loader=_H_OPTIMUS,
    ),
    _spec(
        "h0-mini", "timm", "bioptimus/H0-mini", 768,
        **_BIOPTIMUS, expected_mpp=_AT_20X, licence="CC-BY-NC-ND-4.0", gated=True, pooling="cls",
        loader={
            "architecture": "vit_base_patch14_reg4_dinov2", "img_size": 224, "init_values": 1e-5,
            "mlp_ratio": 5.33334, **_SWIGLU,
        },
        note="backbone.pooling=cls_mean gives the 1536 features that the model's page also describes.",
    ),
    _spec(
        "prov-gigapath", "timm", "prov-gigapath/prov-gigapath", 1536,
        expected_mpp=_AT_20X, licence="Apache-2.0 with conditions", gated=True,
        loader={
            "architecture": "vit_giant_patch14_dinov2", "img_size": 224, "patch_size": 16, "mlp_ratio": 5.33334,
            "data": {"crop_pct": 0.875, "interpolation": "bicubic"},  # resized to 256, cropped to 224
        },
        note="Tile encoder only.",
    ),
    _hibou("hibou-b", "histai/hibou-b", 768, layers=12, heads=12),
    _hibou("hibou-l", "histai/hibou-L", 1024, layers=24, heads=16),
    _spec(
        "midnight", "transformers", "kaiko-ai/midnight", 1536,
        mean=HALF, std=HALF, interpolation="bilinear", licence="MIT", gated=True, pooling="cls",
        loader={"facts": {"model_type": "dinov2", "num_hidden_layers": 40, "patch_size": 14}},
        note="backbone.pooling=cls_mean gives the 3072 features that the model's page also describes. " + _MANY_SCALES,
    ),
    _spec(
        "lunit-vit-s", "timm", "1aurent/vit_small_patch16_224.lunit_dino", 384,
        **_LUNIT, licence="Lunit non-commercial", loader={"architecture": "vit_small_patch16_224"},
    ),
    _kaiko("kaiko-vits16", "vit_small_patch16_224", 384),
    _kaiko("kaiko-vits8", "vit_small_patch8_224", 384),
    _kaiko("kaiko-vitb16", "vit_base_patch16_224", 768),
    _kaiko("kaiko-vitb8", "vit_base_patch8_224", 768),
    _kaiko("kaiko-vitl14", "vit_large_patch14_reg4_dinov2", 1024, img_size=518),
    *(
        _dinov2(size, letter, dim, registers)
        for registers in (False, True)
        for size, letter, dim in (("small", "s", 384), ("base", "b", 768), ("large", "l", 1024), ("giant", "g", 1536))
    ),
    *(
        _imagenet(size, letter, dim)
        for size, letter, dim in (("tiny", "ti", 192), ("small", "s", 384), ("base", "b", 768), ("large", "l", 1024))
    ),
)  # fmt: skip

BACKBONES: Mapping[str, ModelSpec] = {spec.name: spec for spec in _ENTRIES}
"""Specifications of backbones, by name.

To add a model, add an entry to `_ENTRIES`. `family` is `timm` or `transformers`; `source` is a Hub id (with `/`) or a
timm model name; `dim`, `pixels`, `mean` and `std` are checked against the loaded model. For timm, `loader` holds
arguments of `timm.create_model` and two additional keys: `architecture` (timm architecture of a model on the Hub, so
that a weights file without config.json is enough) and `data` (keys that override timm's `pretrained_cfg`). Layer
classes are given by name (`SwiGLUPacked`, `SiLU`), which `timm_backbones.py` resolves. For transformers, `facts` lists
keys of the loaded model's configuration and their required values. The weights of a timm model must match its
`architecture` by name and shape.
"""
