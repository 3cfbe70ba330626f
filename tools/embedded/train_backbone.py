"""Pretrain the bundled backbone, a tiny hybrid ViT from timm, without labels, by regression of image statistics."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from clipit.config.run import AugmentationConfig
from clipit.progress import progress
from clipit.synthetic.latents import stream
from clipit.synthetic.tile_draws import MPP, VLM_CENTRES, draw_tiles
from clipit.tiles.augment import augment, tile_keys
from tools.embedded.train_vlm import MEAN, STD

ARCHITECTURE = "vit_tiny_r_s16_p8_224"
"""A convolutional stem with group normalisation, then a ViT: no batch normalisation, one pooled token."""
MODEL_ARGS = {"img_size": 64, "patch_size": 4, "embed_dim": 128, "depth": 3, "num_heads": 4}
"""16 tokens for a tile of 64 px."""


@dataclass(frozen=True)
class BackboneRecipe:
    """Pretraining of the bundled backbone."""

    tiles: int = 8_000
    centres: tuple[int, ...] = (*VLM_CENTRES, 6, 7)
    epochs: int = 3
    batch_size: int = 96
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    stain_jitter: float = 0.1


def train_backbone(folder: Path, seed: int, recipe: BackboneRecipe) -> dict[str, Any]:
    """Pretrain a backbone on unlabelled tiles drawn with this seed, and save it in timm's Hub format.

    The loss is the mean squared error between a linear layer on the pooled token and the standardised
    `image_statistics` of the same, augmented pixels.
    """
    import timm

    images = draw_tiles(seed, "backbone", recipe.tiles, recipe.centres).images
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    torch.manual_seed(seed)
    model: Any = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=0, **MODEL_ARGS)
    losses = _fit(model, pixels, seed, recipe)
    _save(model.eval(), folder)
    return {
        "tiles": recipe.tiles,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": len(losses),
        "unexplained_variance": float(np.mean(losses[-20:])),
    }


def image_statistics(images: Float[Tensor, "b 3 64 64"]) -> Float[Tensor, "b 38"]:
    """Compute 38 classical statistics of images in 0..1, none of which is specific to tissue.

    They are, with their number in parentheses:

    - mean, standard deviation, skewness and kurtosis of the three channels (12) and of the mean channel (4);
    - standard deviation of the mean channel after box filters of 2, 4, 8 and 16 px (4), and its mean local standard
      deviation at the same scales (4);
    - mean absolute differences of the mean channel at 1, 2 and 4 px along both axes (6), and the standard deviations of
      these differences (6);
    - correlations between channels (2).
    """
    grey = images.mean(1, keepdim=True)
    parts = [_moments(images), _moments(grey)]
    for size in (2, 4, 8, 16):
        low = functional.avg_pool2d(grey, size)
        local = (functional.avg_pool2d(grey**2, size) - low**2).clamp_min(0).add(1e-6).sqrt()
        parts += [low.flatten(1).std(1, keepdim=True), local.flatten(1).mean(1, keepdim=True)]
    for gap in (1, 2, 4):
        for change in (grey[..., gap:] - grey[..., :-gap], grey[..., gap:, :] - grey[..., :-gap, :]):
            magnitude = change.abs().flatten(1)
            parts += [magnitude.mean(1, keepdim=True), magnitude.std(1, keepdim=True)]
    centred = images - images.mean((2, 3), keepdim=True)
    spread = centred.flatten(2).square().mean(2).sqrt() + 1e-4
    for first, second in ((0, 1), (1, 2)):
        covariance = (centred[:, first] * centred[:, second]).flatten(1).mean(1)
        parts.append((covariance / (spread[:, first] * spread[:, second]))[:, None])
    return torch.cat(parts, dim=1)


def _moments(images: Float[Tensor, "b c 64 64"]) -> Float[Tensor, "b m"]:
    flat = images.flatten(2)
    mean = flat.mean(2)
    centred = flat - mean[..., None]
    spread = centred.square().mean(2).sqrt() + 1e-4
    skewness = (centred**3).mean(2) / spread**3
    kurtosis = (centred**4).mean(2) / spread**4
    return torch.cat([mean, spread, skewness.clamp(-5, 5), kurtosis.clamp(0, 15)], dim=1)


def _fit(model: nn.Module, pixels: UInt8[Tensor, "n 3 64 64"], seed: int, recipe: BackboneRecipe) -> list[float]:
    known = torch.cat([image_statistics(part.float() / 255) for part in torch.split(pixels, 500)])
    centre, scale = known.mean(0), known.std(0) + 1e-6
    head = nn.Linear(int(MODEL_ARGS["embed_dim"]), known.shape[1])
    parameters = [*model.parameters(), *head.parameters()]
    batches = len(pixels) // recipe.batch_size
    optimiser = torch.optim.AdamW(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=recipe.epochs * batches, pct_start=0.15
    )
    keys = tile_keys(f"backbone-{row}" for row in range(len(pixels)))
    jitter = AugmentationConfig(dihedral=True, stain=recipe.stain_jitter)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    rng = stream(seed, "backbone", "order")
    losses = []
    model.train()
    with progress("bundled backbone", recipe.epochs * batches) as advance:
        for epoch in range(recipe.epochs):
            order = rng.permutation(len(pixels))
            for number in range(batches):
                rows = order[number * recipe.batch_size : (number + 1) * recipe.batch_size]
                images = augment(pixels[rows], keys[rows], seed, epoch, jitter).float() / 255
                target = (image_statistics(images) - centre) / scale
                loss = functional.mse_loss(head(model((images - mean) / std)), target)
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimiser.step()
                schedule.step()
                losses.append(loss.item())
                advance(note=f"loss {losses[-1]:.2f}")
    return losses


def _save(model: Any, folder: Path) -> None:
    """Write config.json and model.safetensors as `timm.create_model("local-dir:...")` reads them."""
    from safetensors.torch import save_file

    from clipit.output_files.artifacts import whole_file, write_json

    with whole_file(folder / "model.safetensors") as path:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path, {"format": "pt"})
    write_json(
        folder / "config.json",
        {
            "architecture": ARCHITECTURE,
            "num_classes": 0,
            "num_features": model.num_features,
            "model_args": MODEL_ARGS,
            "expected_mpp": MPP,
            "pretrained_cfg": {
                "tag": "clipit_synthetic",
                "custom_load": False,
                "input_size": [3, 64, 64],
                "fixed_input_size": True,
                "interpolation": "bicubic",
                "crop_pct": 1.0,
                "crop_mode": "center",
                "mean": list(MEAN),
                "std": list(STD),
                "num_classes": 0,
                "pool_size": None,
                "first_conv": "patch_embed.backbone.conv",
                "classifier": "head",
                "license": "apache-2.0",
            },
        },
    )
