"""Methods with few masks and many image labels: a linear head or a U-Net trained on masks and pseudo-labels."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int16
from PIL import Image

from clipit.mil.train_network import train_bag_network
from clipit.output_files.artifacts import fingerprint
from clipit.segmentation.mask_draws import masks_title, nested_counts
from clipit.segmentation.method import MethodInputs, Segmenter
from clipit.segmentation.pseudo_masks import PseudoMasks, check_evidence, pseudo_masks, token_bags
from clipit.segmentation.token_methods import (
    HeadInputs,
    head_inputs,
    labelled_images,
    missing_training_masks,
)
from clipit.segmentation.unet import Samples, missing_unet_package
from clipit.segmentation.unet_methods import drawn_masks, unet_segmenter

_TITLE = "pseudo-labels"


def missing_evidence(inputs: MethodInputs) -> str:
    """Name the missing input for pseudo-labels from tile labels; "" if nothing is missing."""
    if missing := missing_training_masks(inputs):
        return missing
    if not inputs.options.training.pseudo.evidence:
        return "the mask class that each tile label is evidence of: set segmentation.training.pseudo.evidence"
    return ""


def missing_unet_evidence(inputs: MethodInputs) -> str:
    """Name the missing input for a U-Net trained on pseudo-labels; "" if nothing is missing."""
    return missing_unet_package() or missing_evidence(inputs)


def token_heads_pseudo(inputs: MethodInputs) -> list[Segmenter]:
    """Train a linear head for each number of masks and each seed, on the masks and on pseudo-labels for other images.

    A number that would use all training masks is skipped.

    Raises:
        ConfigError: A label has no mask class, or no label is evidence of the background.
        DataError: There are fewer than two labels, or no validation image has a label, so no epoch can be chosen.
    """
    title = f"linear head on {inputs.options.training.tokens} tokens"

    def train(heads: HeadInputs, drawn: list[int], pseudo: PseudoMasks, count: int, seed: int) -> Segmenter:
        sources = [heads.targets(drawn), pseudo.targets(len(inputs.masks.classes.names))]
        name = f"{title}, {masks_title(count)} and {_TITLE}, seed {seed}"
        return heads.segmenter(name, sources, count, seed, **pseudo.facts())

    return _segmenters(inputs, train)


def unets_pseudo(inputs: MethodInputs) -> list[Segmenter]:
    """Train a U-Net for each number of masks and each seed, on the masks and on pseudo-labels for other images.

    A number that would use all training masks is skipped.

    Raises:
        ConfigError: A label has no mask class, or no label is evidence of the background.
        DataError: There are fewer than two labels, or no validation image has a label, so no epoch can be chosen.
    """

    def train(heads: HeadInputs, drawn: list[int], pseudo: PseudoMasks, count: int, seed: int) -> Segmenter:
        sources = [drawn_masks(heads.train, count, seed), _samples(heads, pseudo)]
        name = f"U-Net, {masks_title(count)} and {_TITLE}, seed {seed}"
        return unet_segmenter(name, sources, count, seed, inputs, **pseudo.facts())

    return _segmenters(inputs, train)


def _segmenters(
    inputs: MethodInputs, train: Callable[[HeadInputs, list[int], PseudoMasks, int, int], Segmenter]
) -> list[Segmenter]:
    options, tiles = inputs.options, inputs.workspace.all_tiles
    pseudo, classes = options.training.pseudo, inputs.masks.classes.names
    background = pseudo.background or classes[options.class_of.get(0, 0)]
    check_evidence(tiles.classes, classes, background, pseudo)
    available = len(inputs.masks.of_split("train"))
    counts = [count for count in nested_counts(options.training.masks, available) if count < available]
    if not counts:
        return []
    heads = head_inputs(inputs)
    remaining: dict[tuple[int, int], PseudoMasks] = {}
    for seed in options.training.seeds:
        labelled = labelled_images(inputs.workspace.tiles(seed))
        model = train_bag_network(token_bags(labelled, heads.store), pseudo.training, seed, root=inputs.workspace.root)
        pseudo_labels = pseudo_masks(model, labelled.of_split("train"), heads.store, classes, background, pseudo)
        for count in counts:
            drawn = heads.train.tiles.ids[heads.draw(count, seed)]
            remaining[count, seed] = pseudo_labels.without([str(name) for name in drawn])
    return [
        train(heads, heads.draw(count, seed), remaining[count, seed], count, seed)
        for count in counts
        for seed in options.training.seeds
    ]


def _samples(heads: HeadInputs, pseudo: PseudoMasks) -> Samples:
    """Return the images with pseudo-labels; each pixel has the class of its cell."""
    tiles = heads.inputs.workspace.all_tiles
    rows = np.flatnonzero(tiles.among(pseudo.codes))

    def read(index: int) -> tuple[Image.Image, Int16[np.ndarray, "h w"], float]:
        row = int(rows[index])
        image, mpp = tiles.read(row), float(tiles.mpp[row])
        codes = pseudo.codes[str(tiles.ids[row])]
        return image, heads.model.lattice(image, mpp).expand(codes), mpp

    codes_of = {name: fingerprint(codes.tolist()) for name, codes in pseudo.codes.items()}
    identity = [heads.store.fingerprint, tiles.mpp[rows].tolist(), codes_of]
    return Samples(len(rows), read, {"pseudo": fingerprint(identity)})
