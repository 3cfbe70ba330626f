"""Tiny random models and a small data set of tiles and reports, in the formats of the real libraries."""

import csv
import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from clipit.config.file import ConfigFile
from clipit.config.run import RunConfig

MakeConfig = Callable[..., RunConfig]
"""`configure(**{"lora.rank": 2})`: see conftest.py."""
MakeFile = Callable[..., ConfigFile]
"""`configure_file(**{"comparison.seeds": [1]})`: see conftest.py."""

CLASSES = ("gland", "stroma", "tumour")
WORDS = [
    "tumour", "gland", "stroma", "necrosis", "mucin", "lymphocytes", "adipose", "tissue", "normal", "mucosa",
    "crypts", "nuclei", "atypia", "invasion", "margin", "dysplasia", "adenoma", "villous", "serrated",
    "tubular", "fibrosis", "oedema", "infiltrate", "vessels", "muscle", "large", "small", "round", "crowded",
    "moderate", "severe", "mild", "focal", "diffuse", "marked", "with", "and", "of", "the", "a", "an", "image",
    "is", "are", "shows", "seen", "present", "absent",
]  # fmt: skip

SMALL_COMPARISON = {
    "training.steps": 2,
    "training.evaluate_every": 1,
    "evaluation.bootstrap": 20,
    "comparison.arms": ["image_only", "clip_it_all"],
    "comparison.tuning_seeds": [3],
}
"""Configuration keys of a comparison that runs in seconds."""


def with_run(file: ConfigFile, **changes: Any) -> ConfigFile:
    """Copy of a configuration file with updated run keys."""
    return file.model_copy(update={"run": file.run.model_copy(update=changes)})


def with_comparison(file: ConfigFile, **changes: Any) -> ConfigFile:
    """Copy of a configuration file with updated comparison keys."""
    return file.model_copy(update={"comparison": file.comparison.model_copy(update=changes)})


def save_word_tokenizer(folder: Path, words: Sequence[str]) -> dict[str, int]:
    """Save a lower-casing word-level tokeniser in transformers format; return its vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    return vocabulary


def save_clip(folder: Path, seed: int = 0) -> Path:
    """Save a transformers CLIPModel with its image processor and a word-level tokeniser."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    vocabulary = save_word_tokenizer(folder, [*WORDS, ".", ","])
    torch.manual_seed(seed)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(vocabulary), "max_position_embeddings": 16}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_timm(folder: Path) -> Path:
    """Save a timm vision transformer with two blocks."""
    import timm
    import torch

    torch.manual_seed(1)
    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2
    )
    timm.models.save_for_hf(model, str(folder), safe_serialization=True)
    return folder


def write_small_world(root: Path) -> dict[str, Any]:
    """Write 120 tiles of three classes, 60 reports, prompts and both models; return values of a configuration."""
    from PIL import Image

    rng = np.random.default_rng(0)
    rows = []
    for split, count in (("train", 72), ("validation", 24), ("test", 24)):
        for number in range(count):
            label = number % 3
            pixels = rng.integers(0, 120, (32, 32, 3))
            pixels[..., label] += 60 + (number % 7) * 10
            name = f"images/{split}-{number:03d}.png"
            (root / "images").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name)
            size = 2 if split == "test" else 4  # 12 test groups, enough for intervals
            rows.append((name, CLASSES[label], split, f"{split}-{number // size}"))
    with (root / "tiles.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "label", "split", "group"))
        writer.writerows(rows)
    with (root / "reports.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(60):
            sentences = [" ".join(rng.choice(WORDS[:34], size=rng.integers(5, 10))).capitalize() for _ in range(4)]
            # Out-of-vocabulary words give different texts the same embedding.
            sentences.append(f"Case{number % 9} shows {WORDS[number % 5]} and necrosis")
            row = {"id": f"r{number}", "text": ". ".join(sentences) + ".", "finding": WORDS[number % 3]}
            stream.write(json.dumps(row) + "\n")
    prompts = {
        "name": "small",
        "version": 1,
        "templates": ["{}.", "an image of {}."],
        "classes": {"gland": ["normal gland"], "stroma": ["stroma with fibrosis"], "tumour": ["tumour with atypia"]},
    }
    (root / "prompts.yaml").write_text(yaml.safe_dump(prompts), encoding="utf-8")
    return {
        "name": "small",
        "tiles": {
            "source": "table",
            "path": str(root / "tiles.csv"),
            "labels": {"kind": "per_class", "value": 4, "seed": 0},
        },
        "reports": {
            "path": str(root / "reports.jsonl"),
            "id_column": "id",
            "label_column": "finding",
            "morphology_prompts": None,
            "text_checks": None,
        },
        "prompts": str(root / "prompts.yaml"),
        "vlm": {"name": str(save_clip(root / "clip")), "batch_size": 16},
        "backbone": {"name": str(save_timm(root / "timm"))},
        "lora": {"rank": 4},
        "training": {
            "steps": 8,
            "tiles_per_step": 8,
            "learning_rate": 0.01,
            "evaluate_every": 4,
            "checkpoint_every": 4,
            "log_every": 1,
            "threads": 2,
        },
        "evaluation": {"bootstrap": 20},
    }


def write_store(root: Path, ids: "list[str]", vectors: Any, vlm: str = "encoder-a", kind: str = "text_store") -> Any:
    """Write the given vectors as a store in the package's format."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from clipit.distributed import build_once
    from clipit.stores.embed import SHARD, Store

    def make(folder: Path) -> dict[str, Any]:
        for number, start in enumerate(range(0, len(ids), SHARD)):
            part = slice(start, start + SHARD)
            np.save(folder / f"emb-{number:05d}.npy", np.asarray(vectors[part], dtype=np.float16))
            pq.write_table(pa.table({"id": ids[part]}), folder / f"ids-{number:05d}.parquet")
        return {"rows": len(ids), "dim": vectors.shape[1], "vlm": f"name of {vlm}"}

    content = [ids, sha256(np.asarray(vectors).tobytes()).hexdigest()]
    return Store(build_once(root, kind, {"vlm": vlm, "content": content}, make))


def save_open_clip_bert(folder: Path) -> Path:
    """Save an open_clip model like BiomedCLIP: a timm image tower and a BERT text tower with its own files."""
    import open_clip
    import torch
    from open_clip.push_to_hf_hub import save_config_for_hf
    from safetensors.torch import save_file
    from transformers import BertConfig

    vocabulary = save_word_tokenizer(folder, [*WORDS, ".", ","])
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertConfig(vocab_size=len(vocabulary), max_position_embeddings=24, **tower).save_pretrained(folder)
    config: dict[str, Any] = {
        "embed_dim": 12,
        # input size of timm's test_vit
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"},
        "text_cfg": {
            "hf_model_name": str(folder),
            "hf_tokenizer_name": "somebody/some-bert",
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": 24,
            "hf_model_pretrained": False,
        },
    }
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**config)
    preprocess = {"size": 160, "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    open_clip.model.set_model_preprocess_cfg(model, {**preprocess, "resize_mode": "shortest"})
    save_file({n: v.contiguous() for n, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    config["text_cfg"]["hf_model_name"] = "somebody/some-bert"
    save_config_for_hf(model, folder / "open_clip_config.json", config)
    return folder


CONCH = {
    "embed_dim": 16,
    "embed_dim_caption": 24,
    "vision_cfg": {
        "image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "num_heads": 2, "attentional_pool_caption": True,
        "attentional_pool_contrast": True, "n_queries_contrast": 1, "n_queries_caption": 4, "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 128, "vocab_size": 32007, "width": 24, "heads": 2, "layers": 1, "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {"context_length": 128, "vocab_size": 32007, "width": 24, "heads": 2, "layers": 1},
    "custom_text": True,
}  # fmt: skip
"""Configuration of a small model, in the format of the `conch` package."""


def save_conch(folder: Path, config: "dict[str, Any]") -> Path:
    """Save `pytorch_model.bin` as published, without the caption decoder; needs the `conch` package."""
    import copy

    import torch

    from clipit.models.loading import optional_module

    torch.manual_seed(0)
    values = {key: value for key, value in copy.deepcopy(config).items() if key != "custom_text"}
    model = optional_module("conch.open_clip_custom.coca_model").CoCa(**values)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("text_decoder.")}
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


_KEEP_CODE = """
import torch
from torch import nn
from transformers import BertConfig, BertModel, PretrainedConfig, PreTrainedModel


class KeepConfig(PretrainedConfig):
    model_type = "keep"

    def __init__(self, text_config=None, projection_dim=16, **others):
        super().__init__(**others)
        self.text_config, self.projection_dim = text_config, projection_dim


class Eye(nn.Module):
    num_features = 20

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 20, 8, 8)

    def forward(self, pixels):
        return self.patches(pixels).mean((2, 3))


class KeepModel(PreTrainedModel):
    config_class = KeepConfig

    def __init__(self, config):  # like the published code, it does not call post_init
        super().__init__(config)
        self.visual = Eye()
        self.visual_head = nn.Linear(20, config.projection_dim)
        self.text = BertModel(BertConfig(**config.text_config))
        self.logit_scale = nn.Parameter(torch.tensor(3.0))

    def encode_image(self, pixels):
        return nn.functional.normalize(self.visual_head(self.visual(pixels)), dim=-1)

    def encode_text(self, tokens):
        return nn.functional.normalize(self.text(**tokens).pooler_output, dim=-1)
"""


def save_keep(folder: Path) -> Path:
    """Save a model with custom Python code that has the methods of KEEP."""
    import torch
    from transformers import BertConfig, BertModel

    vocabulary = save_word_tokenizer(folder, [*WORDS, ".", ","])
    (folder / "modeling_keep.py").write_text(_KEEP_CODE, encoding="utf-8")
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": len(vocabulary), "max_position_embeddings": 32}
    code = {"AutoConfig": "modeling_keep.KeepConfig", "AutoModel": "modeling_keep.KeepModel"}
    config = {"model_type": "keep", "auto_map": code, "text_config": text, "projection_dim": 16}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.manual_seed(0)
    weights = {f"text.{name}": value for name, value in BertModel(BertConfig(**text)).state_dict().items()}
    weights |= {"visual.patches.weight": torch.randn(20, 3, 8, 8), "visual.patches.bias": torch.randn(20)}
    weights |= {"visual_head.weight": torch.randn(16, 20), "visual_head.bias": torch.randn(16)}
    torch.save({**weights, "logit_scale": torch.tensor(2.0)}, folder / "pytorch_model.bin")
    return folder
