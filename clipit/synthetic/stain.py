"""From stain concentrations to the colours that the scanner of a centre would give."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8

from clipit.synthetic.fields import SIZE, Maps, noise, per_tile
from clipit.synthetic.streams import stream
from clipit.synthetic.tissues import Stains

# Optical density of haematoxylin and eosin in red, green, blue (Ruifrok and Johnston 2001).
_COLOURS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
_STRENGTH = np.array([1.15, 1.0])


@dataclass(frozen=True)
class Centre:
    """How one centre stains and scans."""

    colours: Float32[np.ndarray, "2 3"]
    gains: Float32[np.ndarray, "2"]
    brightness: float
    blur: float
    """Standard deviation in pixels."""
    tint: Float32[np.ndarray, "3"]


def centre(number: int) -> Centre:
    """The centre of this number (0, 1, ...): the same in every world, as a real hospital would be."""
    rng = stream(0, "centre", number)
    colours = _COLOURS + rng.normal(0, 0.07, (2, 3))
    colours = np.clip(colours, 0.01, None)
    colours /= np.linalg.norm(colours, axis=1, keepdims=True)
    return Centre(
        colours=colours.astype(np.float32),
        gains=(_STRENGTH * np.exp(rng.normal(0, (0.18, 0.22)))).astype(np.float32),
        brightness=float(rng.uniform(0.88, 1.0)),
        blur=float(rng.uniform(0.2, 0.75)),
        tint=rng.normal(0, 0.02, 3).astype(np.float32),
    )


def _blur(maps: Maps, spread: Float[np.ndarray, " n"]) -> Maps:
    """Gaussian blur of five taps; `spread` in pixels for each tile."""
    taps = np.exp(-0.5 * (np.arange(3)[:, None] / np.maximum(spread, 0.05)) ** 2)
    taps /= taps[0] + 2 * taps[1] + 2 * taps[2]
    middle, near, far = (per_tile(tap) for tap in taps)
    for axis in (1, 2):
        padded = np.pad(maps, [(0, 0), (2, 2), (0, 0)] if axis == 1 else [(0, 0), (0, 0), (2, 2)], mode="edge")
        parts = [np.take(padded, range(start, start + SIZE), axis=axis) for start in range(5)]
        maps = middle * parts[2] + near * (parts[1] + parts[3]) + far * (parts[0] + parts[4])
    return np.asarray(maps, dtype=np.float32)


def scan(rng: np.random.Generator, layer: Stains, centres: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n 64 64 3"]:
    """Stain and scan the layers at their centres, with a little variation from tile to tile.

    Beer-Lambert: intensity = brightness * exp(-concentrations @ colours).
    """
    count = len(centres)
    known = {int(number): centre(int(number)) for number in np.unique(centres)}
    each = [known[int(number)] for number in centres]
    colours = np.stack([one.colours for one in each]) + rng.normal(0, 0.03, (count, 2, 3))
    gains = np.stack([one.gains for one in each]) * np.exp(rng.normal(0, (0.12, 0.15), (count, 2)))
    spread = np.array([one.blur for one in each]) * np.exp(rng.normal(0, 0.04, count))
    brightness = np.array([one.brightness for one in each]) * (1 + rng.normal(0, 0.01, count))
    tint = np.stack([one.tint for one in each])
    uneven = 1 + 0.06 * noise(rng, count, 2)
    first = _blur(layer.haematoxylin * (1 + 0.10 * noise(rng, count, 24)), spread) * per_tile(gains[:, 0]) * uneven
    second = _blur(layer.eosin, spread) * per_tile(gains[:, 1]) * uneven
    image = np.empty((count, SIZE, SIZE, 3), dtype=np.float32)
    for channel in range(3):
        density = first * per_tile(colours[:, 0, channel]) + second * per_tile(colours[:, 1, channel])
        light = per_tile(brightness + tint[:, channel]) * np.exp(-np.maximum(density, 0))
        image[..., channel] = light + 0.012 * rng.standard_normal(light.shape, dtype=np.float32)
    return np.asarray(np.clip(np.rint(image * 255), 0, 255), dtype=np.uint8)
