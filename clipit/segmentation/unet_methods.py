"""U-Net method: one network for each number of masks and each seed."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int16
from PIL import Image

from clipit.segmentation.mask_draws import draw_order, masks_title, nested_counts
from clipit.segmentation.method import MethodInputs, Segmenter
from clipit.segmentation.token_methods import missing_training_masks
from clipit.segmentation.unet import Samples, missing_unet_package, train_unet
from clipit.tiles.masks import MaskSet


def missing_unet_masks(inputs: MethodInputs) -> str:
    """Name the missing input for a U-Net trained on masks; "" if nothing is missing."""
    return missing_unet_package() or missing_training_masks(inputs)


def unets(inputs: MethodInputs) -> list[Segmenter]:
    """Train a U-Net for each number of masks and each seed."""
    train = inputs.masks.of_split("train")
    options = inputs.options.training
    return [
        unet_segmenter(
            f"U-Net, {masks_title(count)}, seed {seed}", [drawn_masks(train, count, seed)], count, seed, inputs
        )
        for count in nested_counts(options.masks, len(train))
        for seed in options.seeds
    ]


def drawn_masks(train: MaskSet, count: int, seed: int) -> Samples:
    """Draw training masks with a seed; a larger draw contains all smaller ones."""
    drawn = train.select(draw_order(train.tiles.ids, train.tiles.groups, seed)[:count])

    def read(index: int) -> tuple[Image.Image, Int16[np.ndarray, "h w"], float]:
        image, codes = drawn.read(index)
        return image, codes, float(drawn.tiles.mpp[index])

    return Samples(len(drawn), read, {"masks": drawn.fingerprint})


def unet_segmenter(
    name: str, sources: Sequence[Samples], masks: int, seed: int, inputs: MethodInputs, **facts: object
) -> Segmenter:
    """Train a U-Net, and return its segmenter.

    Args:
        masks: Number of masks, for the tables.
        facts: Additional provenance, by name.
    """
    options = inputs.options.training.unet
    network = train_unet(inputs.workspace.root, sources, options, seed, len(inputs.masks.classes.names))
    provenance = {
        "model": f"U-Net, {options.encoder}",
        "fingerprint": network.fingerprint,
        "encoder_weights": options.encoder_weights or "random",
        "model_mpp": options.mpp,
        "pixels": options.crop,
        "overlap": options.overlap,
        "steps": options.steps,
    }
    return Segmenter(name, network.probabilities, {**provenance, **facts}, training_masks=masks, seed=seed)
