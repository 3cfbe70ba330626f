"""Fixtures with tiny random models, written by the original libraries in their formats."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any import of the Hub's client

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tiny_backbones import TINY, save_hibou, save_own_code, save_vit
from tiny_models import save_word_tokenizer

WORDS = [
    "tumour",
    "glands",
    "with",
    "necrosis",
    "and",
    "mucin",
    "lymphocytes",
    "adipose",
    "tissue",
    "stroma",
    "normal",
    "mucosa",
    "a",
    "an",
    "of",
    "the",
    "image",
    "grade",
]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the Hub's client offline, also if it was imported before HF_HUB_OFFLINE was set."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def traceable() -> Iterator[None]:
    """Disable jaxtyping's run-time checks, which torch.compile and torch.export would trace as part of the model."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    vocabulary = save_word_tokenizer(folder, [*WORDS, "."])
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(vocabulary), "max_position_embeddings": 16}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    CLIPModel(
        CLIPConfig(
            text_config={**text, **ids}, vision_config={**tower, "image_size": 32, "patch_size": 8}, projection_dim=24
        )
    ).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def open_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import open_clip
    from open_clip.push_to_hf_hub import save_config_for_hf
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("open_clip")
    config = {
        "embed_dim": 20,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    open_clip.model.set_model_preprocess_cfg(
        model, {"size": 32, "mean": (0.7, 0.6, 0.7), "std": (0.2, 0.25, 0.2), "interpolation": "bicubic",
                "resize_mode": "shortest"}
    )  # fmt: skip
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    save_config_for_hf(model, folder / "open_clip_config.json", config)
    return folder


def save_timm(folder: Path, architecture: str, **arguments: object) -> Path:
    torch.manual_seed(1)
    model = timm.create_model(architecture, pretrained=False, num_classes=0, **arguments)
    timm.models.save_for_hf(model, str(folder), safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("timm")
    save_timm(
        folder, "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2
    )  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "expected_mpp": 0.5}))
    return folder


@pytest.fixture
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (50, 41), (96, 96), (33, 70)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.fixture(scope="session")
def vision_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny random models, one for each family of backbones."""
    root = tmp_path_factory.mktemp("vision")
    save_hibou(root / "hibou")
    return {
        "fused": save_timm(root / "fused", "vit_tiny_patch16_224", **TINY),
        "registers": save_timm(root / "registers", "vit_giant_patch14_reg4_dinov2", **TINY),
        "tokens": save_timm(root / "tokens", "vit_giant_patch14_reg4_dinov2", **TINY, global_pool=""),
        "ViT": save_vit(root / "vit", "ViT"),
        "Dinov2": save_vit(root / "dinov2", "Dinov2"),
        "Dinov2WithRegisters": save_vit(root / "dinov2_registers", "Dinov2WithRegisters"),
        "DeiT": save_vit(root / "deit", "DeiT"),
        "Beit": save_vit(root / "beit", "Beit"),  # its classifier uses the pooled patch tokens
        "Hibou": root / "hibou",
        "Dinov2 without SwiGLU": save_vit(root / "dinov2_mlp", "Dinov2", use_swiglu_ffn=False),
    }


@pytest.fixture
def remote_code_folder(vision_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a vision model that is defined by Python code in this folder."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return save_own_code(tmp_path / "own", vision_folders["Dinov2WithRegisters"])
