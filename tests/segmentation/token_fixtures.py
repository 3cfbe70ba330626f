"""A model whose tokens are mean patch colours, and tables of two-coloured images with masks."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from labelled_tiles import load_tiles
from PIL import Image

from clipit.config.data import TilesConfig
from clipit.models.patch_tokens import PatchTokens
from clipit.models.preprocess import Preprocess
from clipit.tiles.mask_files import MaskClasses
from clipit.tiles.masks import MaskSet, check_masks, open_masks
from clipit.tiles.tileset import TileSet

SIDE, PATCH = 4, 8
CLASSES = MaskClasses(("other", "tumour"), {0: 0, 1: 1}, (255,))


def colour_model(mpp: float | None = None, fail_after: int | None = None) -> PatchTokens:
    """Model whose tokens are the mean colours (0 to 1) of patches of 8 pixels, in windows of 32 pixels.

    With `fail_after`, the model raises an error after that many batches.
    """
    preprocess = Preprocess(SIDE * PATCH, SIDE * PATCH, "shortest", "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    calls = [0]

    def compute(pixels: torch.Tensor) -> torch.Tensor:
        if calls[0] == fail_after:
            raise RuntimeError("killed")
        calls[0] += 1
        return torch.nn.functional.avg_pool2d(pixels, PATCH).permute(0, 2, 3, 1)

    return PatchTokens("colours", "backbone", preprocess, SIDE, 3, mpp, "colours", torch.device("cpu"), compute)


def write_images(folder: Path, patients: int = 8, size: int = 64) -> Path:
    """Write a table of blue images, in which those labelled tumour contain a red square.

    Half of the patients are in train, a quarter each in validation and test; labels alternate between patients.
    """
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(patients):
        split = "train" if number < patients // 2 else "validation" if number < patients * 3 // 4 else "test"
        for image in range(2):
            tumour = number % 2 == 1
            mask = np.zeros((size, size), dtype=np.uint8)
            if tumour:
                top, left = rng.integers(0, size // 2, 2) // 8 * 8
                mask[top : top + size // 2, left : left + size // 2] = 1
            colours = np.where(mask[:, :, None] == 1, [190, 60, 70], [70, 60, 190])
            pixels = np.clip(colours + rng.integers(-20, 21, (size, size, 3)), 0, 255)
            name = f"p{number}-{image}"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}.png")
            Image.fromarray(mask).save(folder / f"{name}_mask.png")
            label = "tumour" if tumour else "normal"
            files = {"path": f"{name}.png", "mask": f"{name}_mask.png"}
            rows.append({**files, "label": label, "split": split, "group": f"p{number}", "mpp": 1.0})
    with (folder / "images.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "images.csv"


def open_images(table: Path) -> tuple[TileSet, MaskSet]:
    """Open a table of `write_images`."""
    config = TilesConfig(source="table", path=str(table))
    tiles = load_tiles(config, 0)
    return tiles, check_masks(open_masks(config, tiles, CLASSES), "error")
