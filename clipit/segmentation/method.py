"""Interface of segmentation methods: each prepares a function from an image to class probabilities."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Int16
from PIL import Image

from clipit.config.run import RunConfig
from clipit.config.segmentation import SegmentationConfig
from clipit.distributed import get_processes
from clipit.runs.folder import explaining_differences
from clipit.runs.predict_tiles import open_classifier
from clipit.segmentation.decision import Decision
from clipit.tiles.masks import MaskSet
from clipit.workspace.workspace import Workspace

if TYPE_CHECKING:
    from clipit.models.inference import Classifier
    from clipit.models.vlm import VLM


@dataclass(frozen=True)
class MethodInputs:
    """Inputs of a method.

    Attributes:
        options: Section `segmentation`.
        masks: Masks of all splits. Train on `train`, choose on `validation`, and do not read `test`.
        run: Folder of a finished run; None if no run is given.
    """

    config: RunConfig
    options: SegmentationConfig
    workspace: Workspace
    masks: MaskSet
    run: Path | None = None

    @cached_property
    def vlm(self) -> "VLM":
        """The VLM, loaded without the resolution check of `workspace.vlm`, which applies to whole tiles."""
        from clipit.models.vlm import load_vlm

        return load_vlm(self.config.vlm, get_processes().device)

    @cached_property
    def classifier(self) -> "Classifier":
        """The classifier of the finished run."""
        run = self.run or Path()
        with explaining_differences(run, self.config):
            return open_classifier(self.config, run)


@dataclass(frozen=True)
class Segmenter:
    """A method that is ready to segment images: one row of the study's tables.

    Attributes:
        name: Name in tables, unique in the study.
        probabilities: Function from an RGB image and its micrometres per pixel (nan if unknown) to the probability of
            each mask class at each pixel.
        facts: Provenance written next to every score: at least `model` and `fingerprint`.
        training_masks: Number of masks used for training.
        seed: Seed for training; None for methods without training.
        choice: Description of the chosen window scales, with the score of each candidate; empty if nothing was chosen.
        decision: Decision rule, if the method has already chosen one on the validation masks.
        majority: Function from a mask (-1 is ignored) and its micrometres per pixel to the probabilities that would
            result if each of the method's windows were assigned its majority class; None for a method that predicts per
            pixel.
    """

    name: str
    probabilities: Callable[[Image.Image, float], Float32[np.ndarray, "c h w"]]
    facts: Mapping[str, object]
    training_masks: int = 0
    seed: int | None = None
    choice: str = ""
    decision: Decision | None = None
    majority: Callable[[Int16[np.ndarray, "h w"], float], Float32[np.ndarray, "c h w"]] | None = None


@dataclass(frozen=True)
class Method:
    """A segmentation method.

    Attributes:
        title: Short description.
        missing: Function that names the inputs that the method lacks; "" if none.
        prepare: Function that loads or trains models, chooses their settings, and returns the segmenters to score.
        trained: Whether the method trains on masks. Such a method runs only if `segmentation.methods` names it. It
            predicts the most probable class: choosing a threshold could take more masks than training itself.
        classes: Function that opens the model and returns its classes, which are mapped to the mask classes; None if
            the model predicts the mask classes. It raises a ModelError if the model does not support the method.
    """

    title: str
    missing: Callable[[MethodInputs], str]
    prepare: Callable[[MethodInputs], Sequence[Segmenter]]
    trained: bool = False
    classes: Callable[[MethodInputs], Sequence[str]] | None = None
