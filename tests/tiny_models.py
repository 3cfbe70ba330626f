"""Tiny random models and a small world of tiles and reports, in the formats that the real libraries write."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

CLASSES = ("gland", "stroma", "tumour")
WORDS = [
    "tumour", "gland", "stroma", "necrosis", "mucin", "lymphocytes", "adipose", "tissue", "normal", "mucosa",
    "crypts", "nuclei", "atypia", "invasion", "margin", "dysplasia", "adenoma", "villous", "serrated",
    "tubular", "fibrosis", "oedema", "infiltrate", "vessels", "muscle", "large", "small", "round", "crowded",
    "moderate", "severe", "mild", "focal", "diffuse", "marked", "with", "and", "of", "the", "a", "an", "image",
    "is", "are", "shows", "seen", "present", "absent",
]  # fmt: skip


def save_word_tokenizer(folder: Path, words: Sequence[str]) -> dict[str, int]:
    """A tokeniser of whole, lower-case words in transformers' format; its vocabulary."""
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
    """A transformers CLIPModel folder with its processor and a tokeniser of whole words."""
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
    """A timm vision transformer of two blocks."""
    import timm
    import torch

    torch.manual_seed(1)
    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2
    )
    timm.models.save_for_hf(model, str(folder), safe_serialization=True)
    return folder


def write_small_world(root: Path) -> dict[str, Any]:
    """120 tiles in three classes, 60 reports, prompts, both models; the values of a configuration over them."""
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
            rows.append((name, CLASSES[label], split, f"{split}-{number // 4}"))
    with (root / "tiles.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "label", "split", "group"))
        writer.writerows(rows)
    with (root / "reports.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(60):
            sentences = [" ".join(rng.choice(WORDS[:34], size=rng.integers(5, 10))).capitalize() for _ in range(4)]
            # Words outside the vocabulary: different texts with the same embedding.
            sentences.append(f"Case{number % 9} shows {WORDS[number % 5]} and necrosis")
            stream.write(json.dumps({"id": f"r{number}", "text": ". ".join(sentences) + "."}) + "\n")
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
        "reports": {"path": str(root / "reports.jsonl"), "id_column": "id"},
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
    """A store of given vectors, in the format of the package."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from clipit.distributed import build_once
    from clipit.embedding import SHARD, Store

    def make(folder: Path) -> dict[str, Any]:
        for number, start in enumerate(range(0, len(ids), SHARD)):
            part = slice(start, start + SHARD)
            np.save(folder / f"emb-{number:05d}.npy", np.asarray(vectors[part], dtype=np.float16))
            pq.write_table(pa.table({"id": ids[part]}), folder / f"ids-{number:05d}.parquet")
        return {"rows": len(ids), "dim": vectors.shape[1], "vlm": f"name of {vlm}"}

    content = [ids, np.asarray(vectors).tolist()]
    return Store(build_once(root, kind, {"vlm": vlm, "content": content}, make))
