"""Stains of a tile: optical density, the fixed H, E and residual vectors, and Macenko's estimate."""

import numpy as np
from jaxtyping import Float64, UInt8

_RUIFROK = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
HED: Float64[np.ndarray, "3 3"] = _RUIFROK / np.linalg.norm(_RUIFROK, axis=1, keepdims=True)
"""Haematoxylin, eosin and a residual stain in R, G, B (Ruifrok and Johnston 2001), rows of length 1."""

BETA = 0.15 * np.log(10)
"""Pixels with less density in a channel are background: 0.15 in decadic logarithms (Macenko et al. 2009)."""
ALPHA = 1.0
"""Percentile of the angles that is taken for a stain, from each end."""
_FEWEST_PIXELS = 64
_LEAST_SHARE = 0.01
_LEAST_WIDTH = 0.02
"""Second singular value over the first: below, the pixels are of one colour."""
_LEAST_ANGLE = np.deg2rad(3)


def to_density(tile: UInt8[np.ndarray, "3 h w"]) -> Float64[np.ndarray, "p 3"]:
    """Optical density per pixel: od = -ln((x + 1) / 256), so that white (255) has 0 and black stays finite."""
    density: Float64[np.ndarray, "p 3"] = -np.log((tile.reshape(3, -1).T.astype(np.float64) + 1) / 256)
    return density


def to_pixels(density: Float64[np.ndarray, "p 3"], shape: tuple[int, ...]) -> UInt8[np.ndarray, "3 h w"]:
    """The inverse, rounded and cut to 0 ... 255."""
    values = np.clip(np.rint(256 * np.exp(-density) - 1), 0, 255)
    return np.asarray(values.astype(np.uint8).T.reshape(shape))


def macenko_stains(density: Float64[np.ndarray, "p 3"]) -> Float64[np.ndarray, "2 3"] | None:
    """Unit vectors of the tile's two stains, haematoxylin (the redder absorption) first; None where it has not two.

    Macenko et al., ISBI 2009: leave out pixels with less than `BETA` density in a channel; project the rest on the
    plane of the two largest singular vectors of the densities; take the directions at the 1st and 99th percentile of
    the angle in that plane.

    None is given for fewer than 64 such pixels or 1 % of the tile, for pixels of one colour, for directions less than
    3 degrees apart, and for directions that absorb less than nothing in a channel.
    """
    tissue = density[(density >= BETA).all(axis=1)]
    if len(tissue) < max(_FEWEST_PIXELS, _LEAST_SHARE * len(density)):
        return None
    squares, axes = np.linalg.eigh(tissue.T @ tissue)
    if squares[1] < _LEAST_WIDTH**2 * squares[2]:
        return None
    first = axes[:, 2] if axes[:, 2].sum() > 0 else -axes[:, 2]
    plane = np.stack([first, axes[:, 1]], axis=1)
    across = tissue @ plane
    angles = np.arctan2(across[:, 1], across[:, 0])
    low, high = np.percentile(angles, [ALPHA, 100 - ALPHA])
    if high - low < _LEAST_ANGLE:
        return None
    stains = np.stack([plane @ (np.cos(angle), np.sin(angle)) for angle in (low, high)])
    if (stains < -0.05).any():
        return None
    ordered: Float64[np.ndarray, "2 3"] = stains[np.argsort(-stains[:, 0], kind="stable")]
    return ordered
