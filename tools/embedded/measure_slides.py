"""Compare a VLM's accuracy on tiles of synthetic slides with that on the tiles of a world, for the data card."""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image

from clipit.config.run import VLMConfig
from clipit.errors import user_errors
from clipit.evaluation.zero_shot import prompt_embeddings
from clipit.models.vlm import VLM, load_vlm
from clipit.prompts.prompt_set import load_prompts
from clipit.synthetic.fields import SIZE
from clipit.synthetic.latents import CLASSES
from clipit.synthetic.slide_layout import ARTEFACTS
from clipit.synthetic.slide_world import SLIDES
from clipit.synthetic.tile_draws import draw_tiles
from clipit.vectors import unit
from tools.embedded.measure import text_vectors

_MIN_TISSUE = 0.98
"""Minimum fraction of a tile that shows a single tissue."""
_MIN_ARTEFACT = 0.25
"""Minimum fraction of a tile that an artefact covers."""


def check_slides(vlm_folder: str, folder: Path) -> dict[str, Any]:
    """Measure balanced zero-shot accuracies on tiles of 64 x 64 px, with the prompts in the folder.

    `world_tiles`: test tiles of world 0. `world_tiles_of_one_tissue`: those that show a single tissue. `slide_tiles`:
    tiles of slides with a single tissue and no artefact. `pen`, `fold` and `blur`: tiles of slides with a single
    tissue and this artefact on at least a quarter of the area.

    Args:
        vlm_folder: Folder or name of a VLM.
        folder: Folder written by `write_slides`.
    """
    vlm = load_vlm(VLMConfig(name=vlm_folder))
    prompts = folder / "prompts.yaml"
    tiles = draw_tiles(0, "world/test", 1500, (6, 7))
    correct, truth = correct_tiles(vlm, tiles.images, tiles.latents.tissue, prompts), tiles.latents.tissue
    single = tiles.latents.second < 0
    result = {
        "world_tiles": _score(correct, truth),
        "world_tiles_of_one_tissue": _score(correct[single], truth[single]),
    }
    images, truth, artefacts = slide_tiles(folder)
    correct = correct_tiles(vlm, images, truth, prompts)
    parts = {"slide_tiles": artefacts.sum(1) == 0}
    parts |= {name: artefacts[:, number] >= _MIN_ARTEFACT for number, name in enumerate(ARTEFACTS)}
    return result | {name: _score(correct[part], truth[part]) for name, part in parts.items()}


def slide_tiles(
    folder: Path,
) -> tuple[UInt8[np.ndarray, "n 64 64 3"], Int64[np.ndarray, " n"], Float[np.ndarray, "n artefacts"]]:
    """Cut slides into tiles; return those of one tissue, their classes, and the area fraction of each artefact."""
    import openslide

    images, truth, shares = [], [], []
    with (folder / SLIDES).open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    for row in rows:
        with openslide.OpenSlide(folder / row["path"]) as slide:
            image = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
        mask = folder / row["mask"]
        labels, artefacts = (np.asarray(Image.open(mask.with_stem(f"{mask.stem}{of}"))) for of in ("", "_artefacts"))
        for y in range(0, len(image), SIZE):
            for x in range(0, len(image), SIZE):
                window = slice(y, y + SIZE), slice(x, x + SIZE)
                counts = np.bincount(labels[window].ravel(), minlength=len(CLASSES) + 1)[1:]
                if counts.max() >= _MIN_TISSUE * SIZE**2:
                    images.append(image[window])
                    truth.append(int(counts.argmax()))
                    shares.append([float((artefacts[window] == value).mean()) for value in ARTEFACTS.values()])
    return np.stack(images), np.array(truth, dtype=np.int64), np.array(shares)


def correct_tiles(
    vlm: VLM, images: UInt8[np.ndarray, "n 64 64 3"], truth: Int64[np.ndarray, " n"], prompts: Path
) -> Bool[np.ndarray, " n"]:
    """Return which tiles the VLM classifies correctly with the prompts of a file."""
    classes = prompt_embeddings(load_prompts(prompts), lambda texts: text_vectors(vlm, list(texts)), classes=CLASSES)
    pixels = torch.from_numpy(np.stack([vlm.preprocess.pixels(Image.fromarray(image)) for image in images]))
    vectors = unit(torch.cat([vlm.encode_images(part) for part in torch.split(pixels, 128)]).numpy())
    return np.asarray((vectors @ classes.T).argmax(1) == truth)


def _score(correct: Bool[np.ndarray, " n"], truth: Int64[np.ndarray, " n"]) -> dict[str, Any]:
    recalls = {CLASSES[k]: round(float(correct[truth == k].mean()), 3) for k in np.unique(truth)}
    balanced = round(float(np.mean(list(recalls.values()))), 3) if recalls else None
    return {"tiles": len(truth), "balanced_accuracy": balanced, "recalls": recalls}


def main() -> None:
    """Print the scores of a folder written by `clipit world --slides`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of synthetic slides")
    parser.add_argument("--vlm", default="embedded", help="folder or name of the VLM")
    arguments = parser.parse_args()
    with user_errors():
        print(json.dumps(check_slides(arguments.vlm, arguments.folder), indent=1))


if __name__ == "__main__":
    main()
