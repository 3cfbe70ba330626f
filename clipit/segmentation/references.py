"""Floors and ceilings of a segmentation study, computed from its masks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int64

from clipit.config.segmentation import SegmentationConfig
from clipit.errors import counted
from clipit.evaluation.mask_references import all_one_class, best_dice_tiles, haematoxylin_mask, majority_class
from clipit.evaluation.segmentation_scores import count_pixels
from clipit.progress import progress
from clipit.tiles.masks import MaskSet

_SMOOTHING = 5.0  # micrometres: about the size of a nucleus
_SMOOTHING_PIXELS = 5.0  # for images of unknown resolution


@dataclass(frozen=True)
class Reference:
    """A segmentation that needs no model, for comparison.

    Attributes:
        kind: A floor, a ceiling (of the mean Dice over images), or the majority class of each tile.
        tile_um: Edge length of a ceiling's tiles in micrometres (in pixels where the resolution is unknown).
    """

    name: str
    kind: Literal["floor", "ceiling", "majority class"]
    counts: Int64[np.ndarray, "n c c"]
    tile_um: float | None = None


def reference_counts(masks: MaskSet, options: SegmentationConfig) -> list[Reference]:
    """Compute floors and ceilings for masks.

    One floor per foreground class predicts this class everywhere. Another floor, for H&E, thresholds the haematoxylin
    channel with Otsu's method. With two classes, one of them foreground, a ceiling assigns one class to each tile so
    that the Dice of each image is maximal. With more classes, each tile is assigned its majority class, which is not an
    upper bound on the Dice.

    Args:
        options: Section `segmentation`.
    """
    names = masks.classes.names
    floors = [
        Reference(f"everything is {name}", "floor", all_one_class(masks.counts, names.index(name)))
        for name in options.averaged
    ]
    foreground = options.averaged[0] if len(names) == 2 and len(options.averaged) == 1 else None
    stained = options.haematoxylin or foreground
    single = None if foreground is None else names.index(foreground)
    otsu: list[Int64[np.ndarray, "c c"]] = []
    by_edge: dict[float, list[Int64[np.ndarray, "c c"]]] = {edge: [] for edge in options.ceilings}
    with progress("floors and ceilings", len(masks)) as advance:
        for index in range(len(masks)):
            image, truth = masks.read(index)
            mpp = float(masks.tiles.mpp[index])
            if stained is not None:
                smoothing = _SMOOTHING_PIXELS if math.isnan(mpp) else _SMOOTHING / mpp
                above = haematoxylin_mask(np.asarray(image), smoothing)
                otsu.append(count_pixels(_two_classes(above, names, stained, options.averaged), truth, len(names)))
            for edge in by_edge:
                pixels = max(1, round(edge if math.isnan(mpp) else edge / mpp))
                predicted = (
                    majority_class(truth, pixels, len(names))
                    if single is None
                    else best_dice_tiles(truth, pixels, single)
                )
                by_edge[edge].append(count_pixels(predicted, truth, len(names)))
            advance()
    if otsu:
        floors.append(Reference(f"haematoxylin above Otsu's threshold is {stained}", "floor", np.stack(otsu)))
    title = "majority class" if single is None else "best class"
    kind: Literal["majority class", "ceiling"] = "majority class" if single is None else "ceiling"
    unit = _unit(masks.tiles.mpp)
    ceilings = [
        Reference(f"{title} per tile of {edge:g} {unit}", kind, np.stack(counts), edge)
        for edge, counts in by_edge.items()
    ]
    return floors + ceilings


def _unit(mpp: Float[np.ndarray, " n"]) -> str:
    """Return the unit of the tiles' edges: micrometres, and pixels for images of unknown resolution."""
    unknown = int(np.isnan(mpp).sum())
    if unknown == len(mpp):
        return "px"
    return f"um (px in {counted(unknown, 'image')} of unknown resolution)" if unknown else "um"


def _two_classes(
    above: np.ndarray, names: Sequence[str], stained: str, foreground: Sequence[str]
) -> Int64[np.ndarray, "h w"]:
    """Return the stained class above the threshold, and another class below it, preferably background."""
    others = [name for name in names if name != stained]
    below = next((name for name in others if name not in foreground), others[0])
    return np.where(above, names.index(stained), names.index(below)).astype(np.int64)
