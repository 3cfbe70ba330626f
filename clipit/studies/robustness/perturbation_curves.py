"""Robustness curves of several models on the same perturbed tiles, with adaptation at each level."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float32, Int64

from clipit.config.run import RunConfig
from clipit.config.studies import RobustnessConfig
from clipit.distributed import get_processes
from clipit.evaluation.perturb import PERTURBATIONS, perturb
from clipit.progress import progress
from clipit.studies.robustness.adaptation_gain import TrainingReference, adapt_tiles
from clipit.studies.robustness.measured_models import MeasuredModel, Vectors
from clipit.studies.robustness.scores import RobustnessRow, score_row
from clipit.tiles.augment import tile_keys
from clipit.tiles.tileset import TileSet

UNPERTURBED = "none"
_CHUNK = 16
"""Number of tiles perturbed at once."""


def curve_rows(
    config: RunConfig,
    robustness: RobustnessConfig,
    tiles: TileSet,
    models: list[MeasuredModel],
    references: Mapping[str, TrainingReference],
) -> list[RobustnessRow]:
    """Score every model at every level, with and without adaptation; return rows only in the main process.

    The stored tile is perturbed before it is resized for a model, so that the change is the same for models with
    different input sizes. Only one level is held in memory at a time, so tiles are read again for each level.

    Args:
        references: Training references for adaptation, by model name.
    """
    levels: list[tuple[str, float | None]] = [(UNPERTURBED, None)]
    levels += [(name, float(level)) for name, values in robustness.perturbations.items() for level in values]
    unperturbed: dict[tuple[str, str], Float32[np.ndarray, "n c"]] = {}
    rows: list[RobustnessRow] = []
    processes = get_processes()
    with progress("perturbing tiles", len(levels) * -(-len(tiles) // _CHUNK), shown=processes.main) as advance:
        for name, level in levels:
            vectors, untouched = _embed_perturbed(robustness.seed, tiles, models, name, level, advance)
            if not processes.main:
                continue
            unit = "" if level is None else PERTURBATIONS[name].unit
            level_rows = []
            for model in models:
                for output, readout in model.readouts.items():
                    probabilities = readout(vectors[model.name][output])
                    before = unperturbed.get((model.name, output))
                    if level is None:
                        unperturbed[model.name, output] = probabilities
                    row = RobustnessRow(analysis="curve", subject=model.name, output=output)
                    level_rows.append(score_row(row, config, robustness.metric, tiles, probabilities, before))
                if level is not None and robustness.adaptation:
                    reference, seed_name = references[model.name], f"{name} {level:g}"
                    level_rows += adapt_tiles(
                        config, robustness, tiles, model, vectors[model.name], reference, seed_name
                    )
            rows += [
                replace(row, test_set="test", perturbation=name, level=level, unit=unit, untouched=untouched)
                for row in level_rows
            ]
    return rows


def _embed_perturbed(
    seed: int,
    tiles: TileSet,
    models: list[MeasuredModel],
    name: str,
    level: float | None,
    advance: Callable[[int], None],
) -> tuple[dict[str, Vectors], int]:
    """Compute each model's vectors for all tiles at one level, and count untouched tiles, over all processes."""
    processes, keys = get_processes(), tile_keys(tiles.ids.tolist())

    def embed_chunk(rows: Int64[np.ndarray, "_"]) -> tuple[dict[str, Vectors], int]:
        images, untouched = [np.asarray(tiles.read(row)).transpose(2, 0, 1) for row in rows], 0
        if level is not None:
            images, untouched = _perturb_images(images, name, level, keys[rows], seed)
        advance(processes.count)
        return _embed_images(models, images), untouched

    chunks = processes.map_blocks(len(tiles), _CHUNK, embed_chunk)
    joined = {
        model.name: {
            output: np.concatenate([vectors[model.name][output] for vectors, _ in chunks]) for output in model.readouts
        }
        for model in models
    }
    return joined, sum(untouched for _, untouched in chunks)


def _perturb_images(
    images: list[np.ndarray], name: str, level: float, keys: np.ndarray, seed: int
) -> tuple[list[np.ndarray], int]:
    """Perturb images, grouped by size, and count those left untouched."""
    result: list[np.ndarray] = list(images)
    untouched = 0
    for shape in sorted({image.shape for image in images}):
        rows = [i for i, image in enumerate(images) if image.shape == shape]
        perturbed = perturb(np.stack([images[i] for i in rows]), name, level, keys[rows], seed)
        untouched += int(perturbed.untouched.sum())
        for i, pixels in zip(rows, perturbed.pixels, strict=True):
            result[i] = pixels
    return result, untouched


def _embed_images(models: list[MeasuredModel], images: list[np.ndarray]) -> dict[str, Vectors]:
    """Compute vectors by model and output; images are preprocessed once for models with the same preprocessing."""
    from PIL import Image

    inputs: dict[str, torch.Tensor] = {}
    vectors = {}
    for model in models:
        preprocess = model.preprocess
        if preprocess.hash not in inputs:
            pictures = [Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))) for image in images]
            pixels = np.stack([preprocess.pixels(picture) for picture in pictures])
            inputs[preprocess.hash] = torch.from_numpy(pixels).to(get_processes().device)
        vectors[model.name] = model.forward(inputs[preprocess.hash])
    return vectors
