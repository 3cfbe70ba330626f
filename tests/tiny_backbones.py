"""Tiny random vision models in the format of transformers, also one that is defined by code in its folder."""

import json
import shutil
from pathlib import Path

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
"""Arguments of a timm vision transformer."""

_CODE = """
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel


class OwnConfig(Dinov2WithRegistersConfig):
    model_type = "own_vision_model"


class OwnModel(Dinov2WithRegistersModel):
    config_class = OwnConfig
"""


def save_vit(folder: Path, kind: str, **changes: object) -> Path:
    """A tiny vision model of transformers with its image processor: `ViT`, `Dinov2` or `Dinov2WithRegisters`."""
    import torch
    import transformers

    arguments = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    arguments |= {"intermediate_size": 64} if kind == "ViT" else {"use_swiglu_ffn": True}
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


def save_own_code(folder: Path, source: Path) -> Path:
    """The DINOv2 model with registers of `source` as a model of a type that transformers does not know."""
    from safetensors.torch import save_file
    from transformers import Dinov2WithRegistersModel

    shutil.copytree(source, folder)
    model = Dinov2WithRegistersModel.from_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})  # by the names of its own modules
    (folder / "own.py").write_text(_CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own_vision_model", "architectures": ["OwnModel"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
