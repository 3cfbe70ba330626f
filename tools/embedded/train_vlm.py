"""Train the bundled VLM: a tiny transformers CLIPModel, from scratch, on synthetic image-caption pairs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from clipit.config.run import AugmentationConfig
from clipit.output_files.artifacts import write_json
from clipit.progress import progress
from clipit.synthetic.latents import stream
from clipit.synthetic.tile_draws import MPP, VLM_CENTRES, draw_tiles
from clipit.tiles.augment import augment, tile_keys
from tools.embedded.captions import STATUS_NAMED, Wording, draw_captions

CONTEXT = 48
"""Context length of the text tower in tokens, including the two special ones."""
MEAN, STD = (0.75, 0.58, 0.76), (0.18, 0.21, 0.14)
"""Statistics of the synthetic tiles, per channel, in 0..1."""


@dataclass(frozen=True)
class VLMRecipe:
    """Size and training of the bundled VLM."""

    tiles: int = 12_000
    captions: int = 2
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: float = 0.15
    temperature: float = 0.07
    stain_jitter: float = 0.25
    merges: int = 700
    wording: Wording = "graded"
    """`coarse`: captions use the same names for tumours of both grades, and still describe nuclei and glands.
    `status` and `rare_status`: half of the tumour tiles show the molecular status, and captions name it
    (`STATUS_NAMED`)."""


def train_vlm(folder: Path, seed: int, recipe: VLMRecipe) -> dict[str, Any]:
    """Train on tiles and captions drawn with this seed, and save the model, its tokeniser and its processor.

    The loss is the symmetric cross-entropy over the pairs of a batch, with a learned temperature (CLIP, arXiv
    2103.00020). Each epoch uses one caption per tile.

    Returns:
        Counts, steps and last losses for the data card.
    """
    mutated = 0.5 if recipe.wording in STATUS_NAMED else 0.0
    draw = draw_tiles(seed, "vlm", recipe.tiles, VLM_CENTRES, mutated=mutated)
    captions = draw_captions(seed, "vlm", draw.latents, recipe.captions, recipe.wording)
    tokeniser = build_tokeniser(list(chain.from_iterable(captions)), recipe.merges)
    torch.manual_seed(seed)
    model = _new_model(len(tokeniser), tokeniser.bos_token_id, tokeniser.eos_token_id, recipe.temperature)
    losses = _fit(model, _channels_first(draw.images), _tokens(tokeniser, captions), seed, recipe)
    model.eval().save_pretrained(folder)
    tokeniser.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", _processor())
    return {
        "tiles": recipe.tiles,
        "captions": sum(map(len, captions)),
        "distinct_captions": len(set(chain.from_iterable(captions))),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": len(losses),
        "last_loss": float(np.mean(losses[-50:])),
    }


def build_tokeniser(texts: Sequence[str], merges: int) -> Any:
    """Train a CLIP tokeniser (lower case, byte-level BPE) on these texts.

    Its vocabulary contains every byte, so no text has unknown tokens, and `eos` only marks the end.
    """
    from tokenizers import pre_tokenizers
    from tokenizers.trainers import BpeTrainer
    from transformers import CLIPTokenizer

    special = ["<|startoftext|>", "<|endoftext|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner: Any = CLIPTokenizer()
    trainer = BpeTrainer(
        vocab_size=2 * len(letters) + merges,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
        min_frequency=5,
    )
    learner.backend_tokenizer.train_from_iterator(texts, trainer)
    learned = _learned_merges(learner.backend_tokenizer)
    pieces = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in learned]
    vocabulary = {piece: number for number, piece in enumerate([*dict.fromkeys(pieces), *special])}
    return CLIPTokenizer(vocab=vocabulary, merges=learned, model_max_length=CONTEXT)


def _learned_merges(backend: Any) -> list[tuple[str, str]]:
    import json

    return [(pair[0], pair[1]) for pair in json.loads(backend.to_str())["model"]["merges"]]


def _new_model(vocabulary: int, bos: int, eos: int, temperature: float) -> Any:
    from transformers import CLIPConfig, CLIPModel

    text = {
        "vocab_size": vocabulary,
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "gelu",
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": eos,
        "projection_dim": 64,
    }
    vision = {
        "image_size": 64,
        "patch_size": 8,
        "hidden_act": "gelu",
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "projection_dim": 64,
    }
    return CLIPModel(
        CLIPConfig(
            text_config=text,
            vision_config=vision,
            projection_dim=64,
            logit_scale_init_value=math.log(1 / temperature),
            expected_mpp=MPP,
        )
    )


def _fit(
    model: Any,
    pixels: UInt8[Tensor, "n 3 64 64"],
    tokens: tuple[Int64[Tensor, "n c l"], Int64[Tensor, "n c l"]],
    seed: int,
    recipe: VLMRecipe,
) -> list[float]:
    keys = tile_keys(f"vlm-{row}" for row in range(len(pixels)))
    rng = stream(seed, "vlm", "order")
    batches = len(pixels) // recipe.batch_size
    optimiser = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=recipe.epochs * batches, pct_start=recipe.warmup
    )
    jitter = AugmentationConfig(dihedral=True, stain=recipe.stain_jitter)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    losses = []
    model.train()
    with progress("bundled VLM", recipe.epochs * batches) as advance:
        for epoch in range(recipe.epochs):
            order = rng.permutation(len(pixels))
            caption_of = rng.integers(0, recipe.captions, len(pixels))
            for number in range(batches):
                rows = order[number * recipe.batch_size : (number + 1) * recipe.batch_size]
                images = augment(pixels[rows], keys[rows], seed, epoch, jitter).float() / 255
                ids, mask = (part[rows, caption_of[rows]] for part in tokens)
                length = int(mask.sum(1).max())
                output = model(
                    input_ids=ids[:, :length],
                    attention_mask=mask[:, :length],
                    pixel_values=(images - mean) / std,
                )
                loss = _symmetric_loss(output.logits_per_image)
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                with torch.no_grad():
                    model.logit_scale.clamp_(max=math.log(100))
                losses.append(loss.item())
                advance(note=f"loss {losses[-1]:.2f}")
    return losses


def _symmetric_loss(logits: Float[Tensor, "b b"]) -> Float[Tensor, ""]:
    target = torch.arange(len(logits))
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def _channels_first(images: UInt8[np.ndarray, "n 64 64 3"]) -> UInt8[Tensor, "n 3 64 64"]:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _tokens(tokeniser: Any, captions: list[tuple[str, ...]]) -> tuple[Int64[Tensor, "n c l"], Int64[Tensor, "n c l"]]:
    """Return token ids and masks [tiles, captions per tile, length]."""
    flat = list(chain.from_iterable(captions))
    inputs = tokeniser(flat, padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt")
    shape = (len(captions), len(captions[0]), -1)
    return inputs["input_ids"].reshape(shape), inputs["attention_mask"].reshape(shape)


def _processor() -> dict[str, Any]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": 64},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 64, "width": 64},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }
