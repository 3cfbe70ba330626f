"""Figures of segmentations: image, true classes, predicted classes and errors, side by side."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from clipit.reporting.heat_maps import class_colours
from clipit.reporting.plots import in_style, new_figure
from clipit.tiles.mask_files import IGNORED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISSED, FALSE, CONFUSED = "#F0E442", "#000000", "#FFFFFF"
"""Colours of errors, distinct from those of classes: foreground predicted as background, background predicted as
foreground, and one foreground class predicted as another."""
_OPACITY = 0.5
_GREY = (128, 128, 128, 255)
_MAX_PIXELS = 700  # longest edge of a panel


@in_style
def plot_segmentation(
    image: Image.Image,
    truth: Integer[np.ndarray, "h w"],
    predicted: Integer[np.ndarray, "h w"],
    classes: Sequence[str],
    foreground: Sequence[int],
    title: str,
) -> "Figure":
    """Draw an image, its true classes, its predicted classes and the errors in a row of panels.

    Args:
        truth: True class of each pixel; -1 for ignored pixels, which are grey.
        predicted: Predicted class of each pixel.
        foreground: Indices of the foreground classes.
    """
    from matplotlib.patches import Patch

    step = max(1, -(-max(truth.shape) // _MAX_PIXELS))
    truth, predicted = truth[::step, ::step], predicted[::step, ::step]
    small = image.resize(truth.shape[::-1])
    colours = class_colours(len(classes))
    shown = np.where(truth == IGNORED, IGNORED, predicted)
    panels = {
        "image": None,
        "truth": _colour_classes(truth, colours),
        "prediction": _colour_classes(predicted, colours),
        "errors": _colour_errors(truth, shown, foreground),
    }
    width = 11.0
    figure = new_figure(width, width / 4 * truth.shape[0] / truth.shape[1] + 0.9)
    for axes, (name, pixels) in zip(figure.subplots(1, 4), panels.items(), strict=True):
        axes.imshow(np.asarray(small if name in ("image", "errors") else small.convert("L").convert("RGB")))
        if pixels is not None:
            axes.imshow(pixels, alpha=_OPACITY if name != "errors" else 0.7, interpolation="nearest")
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    kinds = {"missed": MISSED, "false": FALSE} if len(foreground) < len(classes) else {}
    kinds |= {"wrong class": CONFUSED} if len(foreground) > 1 else {}
    handles = [Patch(color=colour, label=name) for name, colour in zip(classes, colours, strict=True)]
    handles += [Patch(facecolor=colour, edgecolor="grey", label=f"error: {name}") for name, colour in kinds.items()]
    handles += [Patch(color="grey", label="ignored")] if (truth == IGNORED).any() else []
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))
    figure.suptitle(title, fontsize=9)
    return figure


def _colour_classes(codes: Integer[np.ndarray, "h w"], colours: Sequence[str]) -> UInt8[np.ndarray, "h w 4"]:
    table = np.array([[*bytes.fromhex(colour[1:]), 255] for colour in colours] + [_GREY], dtype=np.uint8)
    return np.asarray(table[codes])  # -1 is the last row


def _colour_errors(
    truth: Integer[np.ndarray, "h w"], predicted: Integer[np.ndarray, "h w"], foreground: Sequence[int]
) -> UInt8[np.ndarray, "h w 4"]:
    wrong = truth != predicted
    positive, predicted_positive = np.isin(truth, foreground), np.isin(predicted, foreground)
    masks = (
        (positive & ~predicted_positive, MISSED),
        (predicted_positive & ~positive, FALSE),
        (positive & predicted_positive, CONFUSED),
    )
    pixels = np.zeros((*truth.shape, 4), dtype=np.uint8)
    for mask, colour in masks:
        pixels[wrong & mask] = [*bytes.fromhex(colour[1:]), 255]
    pixels[truth == IGNORED] = _GREY
    return pixels
