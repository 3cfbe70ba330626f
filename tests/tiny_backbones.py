"""Tiny random vision models in transformers format, including one with custom code in its folder."""

import json
import shutil
from pathlib import Path
from typing import Any

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
"""Arguments of a timm vision transformer."""

_CODE = """
from transformers import (
    Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification, Dinov2WithRegistersModel
)


class OwnConfig(Dinov2WithRegistersConfig):
    model_type = "own_vision_model"


class OwnModel(Dinov2WithRegistersModel):
    config_class = OwnConfig


class OwnClassifier(Dinov2WithRegistersForImageClassification):
    config_class = OwnConfig
"""


def save_vit(folder: Path, kind: str, **changes: object) -> Path:
    """Save a tiny transformers vision model (`kind` is `ViT`, `DeiT`, `Dinov2WithRegisters`...) and its processor."""
    import torch
    import transformers

    arguments = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    arguments |= {"use_swiglu_ffn": True} if kind.startswith("Dinov2") else {"intermediate_size": 64}
    torch.manual_seed(2)
    config = getattr(transformers, f"{kind}Config")(**{**arguments, **changes})
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    ).save_pretrained(folder)
    return folder


def save_hibou(folder: Path) -> Any:
    """Save a tiny model in the format of histai/hibou-b, without its code; return the equivalent timm model.

    The weights are named as in transformers 4's DINOv2, from which Hibou's code is derived.
    """
    import timm
    import torch
    import transformers
    from safetensors.torch import save_file

    torch.manual_seed(4)
    model = timm.create_model(
        "vit_giant_patch14_reg4_dinov2", num_classes=0, dynamic_img_size=True, mlp_ratio=5.5, **TINY
    ).eval()
    with torch.no_grad():
        for weight in model.parameters():  # layer scale and registers start near zero
            torch.nn.init.normal_(weight, std=0.3)
    names = {
        "attn.proj": "attention.output.dense", "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1",
        "mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out", "reg_token": "embeddings.register_tokens",
        "patch_embed.proj": "embeddings.patch_embeddings.projection", "blocks.": "encoder.layer.",
    }  # fmt: skip
    state = {f"layernorm.{key[5:]}" if key.startswith("norm.") else key: w for key, w in model.state_dict().items()}
    for name, new in names.items():
        state = {key.replace(name, new): weight for key, weight in state.items()}
    for key in [key for key in state if ".attn.qkv." in key]:
        for part, weight in zip(("query", "key", "value"), state.pop(key).chunk(3), strict=True):
            state[key.replace("attn.qkv", f"attention.attention.{part}")] = weight.clone()
    # timm has no position embedding for the class token: split the token into two halves
    positions = torch.cat([state["cls_token"] / 2, state.pop("pos_embed")], dim=1)
    state |= {"embeddings.position_embeddings": positions, "embeddings.cls_token": state.pop("cls_token") / 2}
    state["embeddings.mask_token"] = torch.zeros(1, TINY["embed_dim"])
    folder.mkdir()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = {
        "model_type": "hibou", "architectures": ["HibouModel"], "hidden_size": TINY["embed_dim"], "patch_size": 8,
        "auto_map": {"AutoConfig": "configuration_hibou.HibouConfig", "AutoModel": "modeling_hibou.HibouModel"},
        "num_attention_heads": TINY["num_heads"], "num_hidden_layers": TINY["depth"], "image_size": TINY["img_size"],
        "mlp_ratio": 4, "num_register_tokens": 4, "use_swiglu_ffn": True, "qkv_bias": True, "layer_norm_eps": 1e-6,
        "torch_dtype": "float32", "transformers_version": "4.41.2",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_mean=[0.7068, 0.5755, 0.722],
        image_std=[0.195, 0.2316, 0.1816],
    ).save_pretrained(folder)
    return model


def save_own_code(folder: Path, source: Path) -> Path:
    """Save the DINOv2 model in `source` as a custom model type that transformers does not know."""
    from safetensors.torch import save_file
    from transformers import Dinov2WithRegistersModel

    shutil.copytree(source, folder)
    model = Dinov2WithRegistersModel.from_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})  # named after its modules
    (folder / "own.py").write_text(_CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own_vision_model", "architectures": ["OwnModel"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
