"""Interface of a method of segmentation: from the masks of a study to functions from an image to probabilities."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int16, Int64
from PIL import Image

from clipit.config.run import RunConfig
from clipit.config.segmentation import SegmentationConfig
from clipit.tiles.masks import MaskSet
from clipit.workspace.workspace import Workspace


@dataclass(frozen=True)
class MethodInputs:
    """What a method may use.

    Attributes:
        config: Configuration of the run.
        options: Section `segmentation`.
        workspace: Workspace of the configuration.
        masks: Masks of all splits. Train on `train`, choose on `validation`, and do not read `test`.
        run: Folder of a finished run; None without one.
    """

    config: RunConfig
    options: SegmentationConfig
    workspace: Workspace
    masks: MaskSet
    run: Path | None = None


@dataclass(frozen=True)
class Segmenter:
    """A segmentation that is scored: one row of the study's tables.

    Attributes:
        name: Name in tables, unique in the study.
        probabilities: Function from an RGB image and its micrometres per pixel (nan if unknown) to the probability of
            each class of the masks at each pixel.
        facts: Provenance written next to every score: `model` and `fingerprint` at least.
        training_masks: Number of masks that it was trained on.
        seed: Seed of the training; None without one.
        choice: What was chosen on validation masks, in a sentence; empty for nothing.
        ceiling: Function from a mask (-1 is ignored) and its micrometres per pixel to the class of each pixel by
            perfect answers on the method's own grid; None for a method that answers per pixel.
    """

    name: str
    probabilities: Callable[[Image.Image, float], Float32[np.ndarray, "c h w"]]
    facts: Mapping[str, object]
    training_masks: int = 0
    seed: int | None = None
    choice: str = ""
    ceiling: Callable[[Int16[np.ndarray, "h w"], float], Int64[np.ndarray, "h w"]] | None = field(default=None)


@dataclass(frozen=True)
class Method:
    """A method of segmentation.

    Attributes:
        title: Description in a few words.
        missing: Function that returns what the method lacks to run on these inputs; "" for nothing.
        prepare: Function that loads, trains and chooses, and returns the segmentations to score.
    """

    title: str
    missing: Callable[[MethodInputs], str]
    prepare: Callable[[MethodInputs], Sequence[Segmenter]]
