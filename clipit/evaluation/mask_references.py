"""Floors and ceilings for segmentations: predictions without a model, and the best with one class per tile."""

import numpy as np
from jaxtyping import Bool, Int64, Integer, UInt8

from clipit.evaluation.perturb import HED
from clipit.slides.tissue import otsu


def all_one_class(present: Int64[np.ndarray, "n c"], code: int) -> Int64[np.ndarray, "n c c"]:
    """Return the confusion matrices of a prediction that assigns one class to every pixel.

    If this class covers the share p of an image, its Dice in that image is 2 p / (1 + p).

    Args:
        present: Number of pixels of each image, by true class.
    """
    counts = np.zeros((*present.shape, present.shape[1]), dtype=np.int64)
    counts[:, :, code] = present
    return counts


def haematoxylin_mask(image: UInt8[np.ndarray, "h w 3"], smoothing: float | int) -> Bool[np.ndarray, "h w"]:
    """Mask the pixels of an H&E image whose smoothed haematoxylin concentration exceeds Otsu's threshold.

    Concentrations are computed for the fixed stains of Ruifrok and Johnston (2001) and scaled to 0..1 within the image.

    Args:
        smoothing: Standard deviation of the Gaussian that joins neighbouring nuclei, in pixels; 0 for no smoothing.
    """
    from scipy.ndimage import gaussian_filter

    density = -np.log((image.astype(np.float32) + 1) / 256)
    amount = np.maximum(density @ np.linalg.inv(HED)[:, 0].astype(np.float32), 0)
    if smoothing:
        amount = gaussian_filter(amount, smoothing)
    low, high = float(amount.min()), float(amount.max())
    scaled = ((amount - low) / max(high - low, 1e-6)).astype(np.float32)
    return np.asarray(scaled > otsu(scaled))


def majority_class(truth: Integer[np.ndarray, "h w"], edge: int, classes: int) -> Int64[np.ndarray, "h w"]:
    """Return the segmentation that assigns to each tile the majority class of its labelled pixels.

    No segmentation with one class per tile has a higher accuracy, but some have a higher Dice (see `best_dice_tiles`).
    Tiles are adjacent, starting at the upper left corner; those at the right and lower borders may be smaller.

    Args:
        truth: True class of each pixel; -1 is ignored.
        edge: Edge length of a tile in pixels.
    """
    areas = np.stack([_areas(truth == code, edge) for code in range(classes)])
    return _spread(areas.argmax(axis=0), edge, truth.shape)


def best_dice_tiles(truth: Integer[np.ndarray, "h w"], edge: int, code: int) -> Int64[np.ndarray, "h w"]:
    """Return the segmentation with one class per tile that has the highest Dice for one of two classes.

    Tiles are placed as in `majority_class`. Assigning the class to another tile raises the Dice if the fraction of the
    tile that the class covers exceeds half of the current Dice. The class is therefore assigned to the k tiles with the
    largest fractions, where k maximises the Dice.

    Args:
        truth: True class of each pixel, 0 or 1; -1 is ignored.
        edge: Edge length of a tile in pixels.
        code: Class whose Dice is maximised.
    """
    inside, labelled = _areas(truth == code, edge), _areas(truth >= 0, edge)
    order = np.argsort(-inside / np.maximum(labelled, 1), axis=None, kind="stable")
    hits, predicted = (np.cumsum([0, *areas.ravel()[order]]) for areas in (inside, labelled))
    dice = 2 * hits / np.maximum(hits[-1] + predicted, 1)
    codes = np.full(inside.size, 1 - code)
    codes[order[: int(dice.argmax())]] = code
    return _spread(codes.reshape(inside.shape), edge, truth.shape)


def _areas(where: Bool[np.ndarray, "h w"], edge: int) -> Int64[np.ndarray, "r k"]:
    """Count the pixels of each tile."""
    rows, columns = np.arange(0, where.shape[0], edge), np.arange(0, where.shape[1], edge)
    return np.asarray(np.add.reduceat(np.add.reduceat(where.astype(np.int64), rows, axis=0), columns, axis=1))


def _spread(codes: Int64[np.ndarray, "r k"], edge: int, shape: tuple[int, ...]) -> Int64[np.ndarray, "h w"]:
    """Assign the class of each tile to all of its pixels."""
    return np.asarray(codes.repeat(edge, axis=0)[: shape[0]].repeat(edge, axis=1)[:, : shape[1]], dtype=np.int64)
