"""Perturbed tiles: stain jitter, blur, JPEG, brightness, contrast and magnification, each at a level.

All functions take uint8 pixels [b, 3, h, w] of stored tiles and give such pixels back; nothing depends on the other
tiles of the batch. Only the stain jitter draws numbers, per tile, from (seed, tile id).
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8, UInt64

from clipit.errors import ConfigError, explain
from clipit.evaluation.stains import HED, macenko_stains, to_density, to_pixels
from clipit.tiles.augment import uniform

_LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of R, G, B in grey (ITU-R BT.601), as Pillow has them."""

Pixels = UInt8[np.ndarray, "b 3 h w"]
Draws = Float[np.ndarray, "b 6"]
"""Numbers in [-1, 1] of each tile: three for gains, three for offsets."""


@dataclass(frozen=True)
class Perturbed:
    """A perturbed batch.

    Attributes:
        pixels: The batch.
        untouched: Tiles that were left as they are, since their stains cannot be estimated.
    """

    pixels: UInt8[np.ndarray, "b 3 h w"]
    untouched: Bool[np.ndarray, " b"]


def perturb(
    pixels: UInt8[np.ndarray, "b 3 h w"], name: str, level: float | int, keys: UInt64[np.ndarray, " b"], seed: int = 0
) -> Perturbed:
    """Perturb a batch.

    Args:
        pixels: Tiles as they are stored.
        name: One of `PERTURBATIONS`.
        level: How much; see there.
        keys: `clipit.tiles.augment.tile_keys` of the tiles.
        seed: Of the stain jitter. The draws of a tile are the same at all levels, so that a curve is of one and the
            same change at growing strength.

    Raises:
        ConfigError: No perturbation is called so.
    """
    if name not in PERTURBATIONS:
        raise ConfigError(
            explain(
                f"no perturbation is called {name}",
                where="robustness.perturbations",
                fix=f"use {', '.join(PERTURBATIONS)}",
            )
        )
    return PERTURBATIONS[name].function(pixels, float(level), 2 * uniform(keys, seed, 0)[:, :6] - 1)


def macenko(pixels: UInt8[np.ndarray, "b 3 h w"], level: float, draws: Float[np.ndarray, "b 6"]) -> Perturbed:
    """Stain jitter in each tile's own stains (`stains.macenko_stains`; Macenko et al., ISBI 2009).

    With the tile's unit stain vectors S [2, 3] and concentrations c = od S^+ (least squares), od' = od + (c' - c) S,
    c' = (1 + u) c + v; u and v are uniform in [-level, level], one per stain (the form of Tellez et al. 2019, arXiv
    1902.06543). What lies outside the plane of the two stains stays as it is. A tile whose stains cannot be estimated
    is left as it is.
    """
    found, untouched = pixels.copy(), np.zeros(len(pixels), dtype=bool)
    for i, tile in enumerate(pixels):
        density = to_density(tile)
        stains = macenko_stains(density)
        if stains is None:
            untouched[i] = True
            continue
        gains, offsets = level * draws[i, [0, 1]], level * draws[i, [3, 4]]
        found[i] = to_pixels(_jittered(density, stains, gains, offsets), tile.shape)
    return Perturbed(found, untouched)


def hed(pixels: UInt8[np.ndarray, "b 3 h w"], level: float, draws: Float[np.ndarray, "b 6"]) -> Perturbed:
    """Stain jitter in fixed stains: haematoxylin, eosin and a residual (Ruifrok and Johnston 2001).

    od' = od + (c' - c) S with c = od S^-1 and c' = (1 + u) c + v, u and v uniform in [-level, level], one per stain.
    It is what training augments with (`clipit.tiles.augment`), at strengths that training did not see.
    """
    found = [
        to_pixels(_jittered(to_density(tile), HED, level * own[:3], level * own[3:]), tile.shape)
        for tile, own in zip(pixels, draws, strict=True)
    ]
    return _all(np.stack(found) if found else pixels.copy())


def blur(pixels: UInt8[np.ndarray, "b 3 h w"], level: float, draws: Float[np.ndarray, "b 6"]) -> Perturbed:
    """Convolution of each channel with a Gaussian of standard deviation `level` pixels (reflected at the edges)."""
    if level == 0:
        return _all(pixels.copy())
    from scipy.ndimage import gaussian_filter

    return _all(_rounded(gaussian_filter(pixels.astype(np.float32), (0, 0, level, level), mode="reflect")))


def jpeg(pixels: UInt8[np.ndarray, "b 3 h w"], level: float, draws: Float[np.ndarray, "b 6"]) -> Perturbed:
    """Written as JPEG of quality `level` (1 to 100; chroma at half size, libjpeg through Pillow) and read again."""
    from PIL import Image

    found = np.empty_like(pixels)
    for i, tile in enumerate(pixels):
        buffer = io.BytesIO()
        Image.fromarray(tile.transpose(1, 2, 0)).save(buffer, "JPEG", quality=int(level), subsampling="4:2:0")
        found[i] = np.asarray(Image.open(buffer).convert("RGB")).transpose(2, 0, 1)
    return _all(found)


def brightness(pixels: UInt8[np.ndarray, "b 3 h w"], level: float, draws: Float[np.ndarray, "b 6"]) -> Perturbed:
    """x' = level x, cut at 255."""
    return _all(_rounded(level * pixels.astype(np.float32)))


def contrast(pixels: UInt8[np.ndarray, "b 3 h w"], level: float, draws: Float[np.ndarray, "b 6"]) -> Perturbed:
    """x' = m + level (x - m), cut at 0 and 255, with m the tile's mean grey (0.299 R + 0.587 G + 0.114 B)."""
    grey = (pixels.mean(axis=(2, 3)) @ _LUMA)[:, None, None, None].astype(np.float32)
    return _all(_rounded(grey + level * (pixels.astype(np.float32) - grey)))


def magnification(pixels: UInt8[np.ndarray, "b 3 h w"], level: float, draws: Float[np.ndarray, "b 6"]) -> Perturbed:
    """Zoom about the centre, size kept: a window of 1/level of each edge is resized (bicubic) to the whole tile.

    Above 1 it lies inside the tile; below 1 the tile is reflected at its edges to fill it. Micrometres per pixel become
    1/level of what they were.
    """
    if level == 1:
        return _all(pixels.copy())
    from PIL import Image

    height, width = pixels.shape[2:]
    wide = [max(0, int(np.ceil((edge / level - edge) / 2))) for edge in (height, width)]
    padded = np.pad(pixels, ((0, 0), (0, 0), (wide[0], wide[0]), (wide[1], wide[1])), mode="symmetric")
    middle = (padded.shape[3] / 2, padded.shape[2] / 2)
    half = (width / level / 2, height / level / 2)
    box = (middle[0] - half[0], middle[1] - half[1], middle[0] + half[0], middle[1] + half[1])
    found = np.empty_like(pixels)
    for i, tile in enumerate(padded):
        image = Image.fromarray(tile.transpose(1, 2, 0)).resize((width, height), Image.Resampling.BICUBIC, box=box)
        found[i] = np.asarray(image).transpose(2, 0, 1)
    return _all(found)


@dataclass(frozen=True)
class Perturbation:
    """One row of `PERTURBATIONS`.

    Attributes:
        function: (pixels, level, draws) to the perturbed batch.
        unit: What a level is.
        neutral: The level that changes nothing (100 for JPEG: nearly nothing).
    """

    function: Callable[[Pixels, float, Draws], Perturbed]
    unit: str
    neutral: float


PERTURBATIONS = {
    "macenko": Perturbation(macenko, "spread of the jitter, the tile's own stains (Macenko)", 0.0),
    "hed": Perturbation(hed, "spread of the jitter, fixed stains (HED)", 0.0),
    "blur": Perturbation(blur, "Gaussian blur, sigma in stored pixels", 0.0),
    "jpeg": Perturbation(jpeg, "JPEG quality", 100.0),
    "brightness": Perturbation(brightness, "brightness factor", 1.0),
    "contrast": Perturbation(contrast, "contrast factor", 1.0),
    "magnification": Perturbation(magnification, "magnification factor", 1.0),
}
"""Everything that `robustness.perturbations` can name; a further one is a function and a row here."""


def _jittered(
    density: Float64[np.ndarray, "p 3"],
    stains: Float64[np.ndarray, "k 3"],
    gains: Float[np.ndarray, " k"],
    offsets: Float[np.ndarray, " k"],
) -> Float64[np.ndarray, "p 3"]:
    """od + (c' - c) S with c' - c = u c + v."""
    concentrations = density @ np.linalg.pinv(stains)
    found: Float64[np.ndarray, "p 3"] = density + (gains * concentrations + offsets) @ stains
    return found


def _rounded(values: Float[np.ndarray, "b 3 h w"]) -> UInt8[np.ndarray, "b 3 h w"]:
    return np.asarray(np.clip(np.rint(values), 0, 255), dtype=np.uint8)


def _all(pixels: UInt8[np.ndarray, "b 3 h w"]) -> Perturbed:
    return Perturbed(pixels, np.zeros(len(pixels), dtype=bool))
