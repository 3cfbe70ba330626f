"""Interface of a method of segmentation: from the masks of a study to functions from an image to probabilities."""

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
from clipit.segmentation.decision import Decision
from clipit.tiles.masks import MaskSet
from clipit.workspace.workspace import Workspace

if TYPE_CHECKING:
    from clipit.models.vlm import VLM


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

    @cached_property
    def vlm(self) -> "VLM":
        """The VLM of the configuration; for whole tiles, `workspace.vlm` also checks their resolution."""
        from clipit.models.vlm import load_vlm

        return load_vlm(self.config.vlm, get_processes().device)


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
        decision: Rule from probabilities to classes, if the method has chosen it on the validation masks; None for the
            study to choose it.
        ceiling: Function from a mask (-1 is ignored) and its micrometres per pixel to the probabilities that perfect
            answers on the method's own grid would give; None for a method that answers per pixel.
    """

    name: str
    probabilities: Callable[[Image.Image, float], Float32[np.ndarray, "c h w"]]
    facts: Mapping[str, object]
    training_masks: int = 0
    seed: int | None = None
    choice: str = ""
    decision: Decision | None = None
    ceiling: Callable[[Int16[np.ndarray, "h w"], float], Float32[np.ndarray, "c h w"]] | None = None


@dataclass(frozen=True)
class Method:
    """A method of segmentation.

    Attributes:
        title: Description in a few words.
        missing: Function that returns what the method lacks to run on these inputs; "" for nothing.
        prepare: Function that loads, trains and chooses, and returns the segmentations to score.
        trained: Whether it trains on masks, so that it runs only if `segmentation.methods` names it.
    """

    title: str
    missing: Callable[[MethodInputs], str]
    prepare: Callable[[MethodInputs], Sequence[Segmenter]]
    trained: bool = False
