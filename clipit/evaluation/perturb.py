"""Image perturbations at a given level: stain jitter, blur, JPEG, brightness, contrast and magnification.

All functions take and return uint8 pixels [b, 3, h, w] of stored tiles, and process each tile independently of the rest
of its batch. Only the stain jitter is random; its random numbers depend only on the seed and the tile id.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8, UInt64

from clipit.errors import ConfigError
from clipit.tiles.augment import uniform

_LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of R, G, B in grey (ITU-R BT.601), as in Pillow."""
_RUIFROK = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
HED: Float64[np.ndarray, "3 3"] = _RUIFROK / np.linalg.norm(_RUIFROK, axis=1, keepdims=True)
"""Unit absorption vectors in R, G, B of haematoxylin, eosin and a residual stain, one row per stain (Ruifrok and
Johnston 2001)."""

_BETA = 0.15 * np.log(10)
"""Optical density, 0.15 in base 10; a pixel with less in any channel is background (Macenko et al. 2009)."""
_ALPHA = 1.0
"""Percentile of the angles at which a stain vector is taken, counted from either end."""
_MIN_TISSUE_PIXELS = 64
_MIN_TISSUE_SHARE = 0.01
_MIN_SINGULAR_RATIO = 0.02
"""Ratio of the second singular value to the first, below which all pixels count as a single colour."""
_MIN_ANGLE = np.deg2rad(3)

Pixels = UInt8[np.ndarray, "b 3 h w"]
Draws = Float[np.ndarray, "b 6"]
"""Random numbers in [-1, 1] per tile: three for gains, three for offsets."""


@dataclass(frozen=True)
class Perturbed:
    """A perturbed batch.

    Attributes:
        untouched: Mask of tiles left unchanged because their stains cannot be estimated.
    """

    pixels: UInt8[np.ndarray, "b 3 h w"]
    untouched: Bool[np.ndarray, " b"]


def perturb(
    pixels: UInt8[np.ndarray, "b 3 h w"], name: str, level: float | int, keys: UInt64[np.ndarray, " b"], seed: int = 0
) -> Perturbed:
    """Perturb a batch of tiles.

    Args:
        pixels: Tiles as stored.
        name: Key of `PERTURBATIONS`.
        level: Strength, in the perturbation's unit.
        keys: Hashed ids of the tiles, from `clipit.tiles.augment.tile_keys`.
        seed: Seed for the stain jitter. A tile's draws are the same at all levels, so that a curve shows the same
            change at increasing strength.

    Raises:
        ConfigError: The perturbation is unknown.
    """
    if name not in PERTURBATIONS:
        raise ConfigError(
            f"unknown perturbation {name}",
            where="robustness.perturbations",
            fix=f"use one of {', '.join(PERTURBATIONS)}",
        )
    return PERTURBATIONS[name].function(pixels, float(level), 2 * uniform(keys, seed, 0)[:, :6] - 1)


def macenko(pixels: UInt8[np.ndarray, "b 3 h w"], level: float, draws: Float[np.ndarray, "b 6"]) -> Perturbed:
    """Jitter each tile's own stains (`macenko_stains`; Macenko et al., ISBI 2009).

    With the tile's unit stain vectors S [2, 3] and concentrations c = od S^+ (least squares), od' = od + (c' - c) S,
    c' = (1 + u) c + v; u and v are uniform in [-level, level], one per stain (the form of Tellez et al. 2019, arXiv
    1902.06543). Components outside the plane of the two stains are kept. A tile whose stains cannot be estimated is
    left unchanged.
    """
    jittered, untouched = pixels.copy(), np.zeros(len(pixels), dtype=bool)
    for i, tile in enumerate(pixels):
        density = to_density(tile)
        stains = macenko_stains(density)
        if stains is None:
            untouched[i] = True
            continue
        gains, offsets = level * draws[i, [0, 1]], level * draws[i, [3, 4]]
        jittered[i] = to_pixels(_jitter_stains(density, stains, gains, offsets), tile.shape)
    return Perturbed(jittered, untouched)


def hed(pixels: UInt8[np.ndarray, "b 3 h w"], level: float, draws: Float[np.ndarray, "b 6"]) -> Perturbed:
    """Jitter fixed stains: haematoxylin, eosin and a residual (Ruifrok and Johnston 2001).

    od' = od + (c' - c) S with c = od S^-1 and c' = (1 + u) c + v, u and v uniform in [-level, level], one per stain.
    This is the augmentation used in training (`clipit.tiles.augment`), at the strengths given in the configuration.
    """
    jittered = [
        to_pixels(_jitter_stains(to_density(tile), HED, level * draw[:3], level * draw[3:]), tile.shape)
        for tile, draw in zip(pixels, draws, strict=True)
    ]
    return _all_changed(np.stack(jittered) if jittered else pixels.copy())


def blur(pixels: UInt8[np.ndarray, "b 3 h w"], level: float, draws: Float[np.ndarray, "b 6"]) -> Perturbed:
    """Blur each channel with a Gaussian of standard deviation `level` pixels (reflected at the edges)."""
    if level == 0:
        return _all_changed(pixels.copy())
    from scipy.ndimage import gaussian_filter

    return _all_changed(_to_uint8(gaussian_filter(pixels.astype(np.float32), (0, 0, level, level), mode="reflect")))


def jpeg(pixels: UInt8[np.ndarray, "b 3 h w"], level: float, draws: Float[np.ndarray, "b 6"]) -> Perturbed:
    """Compress as JPEG at quality `level` (1 to 100; 4:2:0 chroma subsampling, libjpeg through Pillow)."""
    from PIL import Image

    compressed = np.empty_like(pixels)
    for i, tile in enumerate(pixels):
        buffer = io.BytesIO()
        Image.fromarray(tile.transpose(1, 2, 0)).save(buffer, "JPEG", quality=int(level), subsampling="4:2:0")
        compressed[i] = np.asarray(Image.open(buffer).convert("RGB")).transpose(2, 0, 1)
    return _all_changed(compressed)


def brightness(pixels: UInt8[np.ndarray, "b 3 h w"], level: float, draws: Float[np.ndarray, "b 6"]) -> Perturbed:
    """Scale brightness: x' = level x, clipped at 255."""
    return _all_changed(_to_uint8(level * pixels.astype(np.float32)))


def contrast(pixels: UInt8[np.ndarray, "b 3 h w"], level: float, draws: Float[np.ndarray, "b 6"]) -> Perturbed:
    """Scale contrast: x' = m + level (x - m), clipped to 0..255, with m the mean grey (0.299 R + 0.587 G + 0.114 B)."""
    grey = (pixels.mean(axis=(2, 3)) @ _LUMA)[:, None, None, None].astype(np.float32)
    return _all_changed(_to_uint8(grey + level * (pixels.astype(np.float32) - grey)))


def magnification(pixels: UInt8[np.ndarray, "b 3 h w"], level: float, draws: Float[np.ndarray, "b 6"]) -> Perturbed:
    """Zoom about the centre at constant size: a central window, 1/level as wide and high, is resized to the tile size.

    Above 1, the window lies inside the tile; below 1, the tile is reflected at its edges to fill the window. Resizing
    is bicubic. The resolution in µm per pixel is divided by `level`.
    """
    if level == 1:
        return _all_changed(pixels.copy())
    from PIL import Image

    height, width = pixels.shape[2:]
    margins = [max(0, int(np.ceil((edge / level - edge) / 2))) for edge in (height, width)]
    padding = ((0, 0), (0, 0), (margins[0], margins[0]), (margins[1], margins[1]))
    padded = np.pad(pixels, padding, mode="symmetric")
    middle = (padded.shape[3] / 2, padded.shape[2] / 2)
    half = (width / level / 2, height / level / 2)
    box = (middle[0] - half[0], middle[1] - half[1], middle[0] + half[0], middle[1] + half[1])
    zoomed = np.empty_like(pixels)
    for i, tile in enumerate(padded):
        image = Image.fromarray(tile.transpose(1, 2, 0)).resize((width, height), Image.Resampling.BICUBIC, box=box)
        zoomed[i] = np.asarray(image).transpose(2, 0, 1)
    return _all_changed(zoomed)


@dataclass(frozen=True)
class Perturbation:
    """A perturbation, with the meaning of its level.

    Attributes:
        function: Function from pixels, level and random draws to the perturbed batch.
        unit: Meaning of the level, as shown on axes and in tables.
        neutral: Level that changes nothing (JPEG at 100: almost nothing).
    """

    function: Callable[[Pixels, float, Draws], Perturbed]
    unit: str
    neutral: float


PERTURBATIONS = {
    "macenko": Perturbation(macenko, "jitter strength, the tile's own stains (Macenko)", 0.0),
    "hed": Perturbation(hed, "jitter strength, fixed stains (HED)", 0.0),
    "blur": Perturbation(blur, "Gaussian blur, sigma in stored pixels", 0.0),
    "jpeg": Perturbation(jpeg, "JPEG quality", 100.0),
    "brightness": Perturbation(brightness, "brightness factor", 1.0),
    "contrast": Perturbation(contrast, "contrast factor", 1.0),
    "magnification": Perturbation(magnification, "magnification factor", 1.0),
}
"""Perturbations by name. To add one, also add its name and levels to clipit/config/studies.py."""


def to_density(tile: UInt8[np.ndarray, "3 h w"]) -> Float64[np.ndarray, "p 3"]:
    """Compute the optical density per pixel, od = -ln((x + 1) / 256): 0 for white (255), and finite for black."""
    density: Float64[np.ndarray, "p 3"] = -np.log((tile.reshape(3, -1).T.astype(np.float64) + 1) / 256)
    return density


def to_pixels(density: Float64[np.ndarray, "p 3"], shape: tuple[int, ...]) -> UInt8[np.ndarray, "3 h w"]:
    """Convert optical density to pixels, rounded and clipped to 0..255; the inverse of `to_density`."""
    values = np.clip(np.rint(256 * np.exp(-density) - 1), 0, 255)
    return np.asarray(values.astype(np.uint8).T.reshape(shape))


def macenko_stains(density: Float64[np.ndarray, "p 3"]) -> Float64[np.ndarray, "2 3"] | None:
    """Estimate unit vectors of a tile's two stains, haematoxylin (absorbs more red) first; None if not separable.

    Macenko et al., ISBI 2009: drop pixels below `_BETA` density in any channel; project the rest onto the plane of the
    two largest singular vectors of the densities; take the directions at the 1st and 99th percentile of the angle in
    that plane.

    The result is None if fewer than 64 pixels, or less than 1% of the tile, are tissue; if the pixels have a single
    colour; if the directions are less than 3 degrees apart; or if a direction's absorption in a channel is below -0.05.
    """
    tissue = density[(density >= _BETA).all(axis=1)]
    if len(tissue) < max(_MIN_TISSUE_PIXELS, _MIN_TISSUE_SHARE * len(density)):
        return None
    squares, axes = np.linalg.eigh(tissue.T @ tissue)
    if squares[1] < _MIN_SINGULAR_RATIO**2 * squares[2]:
        return None
    first = axes[:, 2] if axes[:, 2].sum() > 0 else -axes[:, 2]
    plane = np.stack([first, axes[:, 1]], axis=1)
    coordinates = tissue @ plane
    angles = np.arctan2(coordinates[:, 1], coordinates[:, 0])
    low, high = np.percentile(angles, [_ALPHA, 100 - _ALPHA])
    if high - low < _MIN_ANGLE:
        return None
    stains = np.stack([plane @ (np.cos(angle), np.sin(angle)) for angle in (low, high)])
    if (stains < -0.05).any():
        return None
    ordered: Float64[np.ndarray, "2 3"] = stains[np.argsort(-stains[:, 0], kind="stable")]
    return ordered


def _jitter_stains(
    density: Float64[np.ndarray, "p 3"],
    stains: Float64[np.ndarray, "k 3"],
    gains: Float[np.ndarray, " k"],
    offsets: Float[np.ndarray, " k"],
) -> Float64[np.ndarray, "p 3"]:
    """Compute od + (c' - c) S with c' - c = u c + v."""
    concentrations = density @ np.linalg.pinv(stains)
    jittered: Float64[np.ndarray, "p 3"] = density + (gains * concentrations + offsets) @ stains
    return jittered


def _to_uint8(values: Float[np.ndarray, "b 3 h w"]) -> UInt8[np.ndarray, "b 3 h w"]:
    return np.asarray(np.clip(np.rint(values), 0, 255), dtype=np.uint8)


def _all_changed(pixels: UInt8[np.ndarray, "b 3 h w"]) -> Perturbed:
    return Perturbed(pixels, np.zeros(len(pixels), dtype=bool))
