"""Render latents as RGB tiles: compose the tissues, then simulate the stain and scanner of a centre."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8

from clipit.synthetic.fields import SIZE, noise, per_tile, ramp
from clipit.synthetic.latents import Latents, attributes, stream
from clipit.synthetic.tissues import Stains, draw_tissue

# Optical density of haematoxylin and eosin in red, green, blue (Ruifrok and Johnston 2001).
_COLOURS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
_STRENGTH = np.array([1.15, 1.0])

UNEVEN = 0.06
"""Relative standard deviation of the stain strength within a tile."""
GRAIN = 0.10
"""Relative standard deviation of the haematoxylin texture."""
SENSOR_NOISE = 0.012
"""Standard deviation of the scanner's noise; white is 1."""


@dataclass(frozen=True)
class Centre:
    """Stain and scanner of one centre."""

    colours: Float32[np.ndarray, "2 3"]
    gains: Float32[np.ndarray, "2"]
    brightness: float
    blur: float
    """Standard deviation in pixels."""
    tint: Float32[np.ndarray, "3"]


def centre(number: int) -> Centre:
    """Return the centre with this number (0, 1, ...); it is the same in every world."""
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


@dataclass(frozen=True)
class Scans:
    """Stain and scanner of individual scans: the values of their centres with small variations.

    Attributes:
        colours: Optical density per stain and channel.
        gains: Strength of both stains.
        spread: Standard deviation of the scanner's blur in pixels.
        white: Intensity of clear glass per channel.
    """

    colours: Float[np.ndarray, "n 2 3"]
    gains: Float[np.ndarray, "n 2"]
    spread: Float[np.ndarray, " n"]
    white: Float[np.ndarray, "n 3"]


def draw_scans(rng: np.random.Generator, centres: Int64[np.ndarray, " n"]) -> Scans:
    """Draw one scan for each of these centres."""
    count = len(centres)
    centre_by_number = {int(number): centre(int(number)) for number in np.unique(centres)}
    each = [centre_by_number[int(number)] for number in centres]
    colours = np.stack([c.colours for c in each]) + rng.normal(0, 0.03, (count, 2, 3))
    gains = np.stack([c.gains for c in each]) * np.exp(rng.normal(0, (0.12, 0.15), (count, 2)))
    spread = np.array([c.blur for c in each]) * np.exp(rng.normal(0, 0.04, count))
    brightness = np.array([c.brightness for c in each]) * (1 + rng.normal(0, 0.01, count))
    return Scans(colours, gains, spread, brightness[:, None] + np.stack([c.tint for c in each]))


def blur_maps(maps: Float32[np.ndarray, "n h w"], spread: Float[np.ndarray, " n"]) -> Float32[np.ndarray, "n h w"]:
    """Apply a five-tap Gaussian blur; `spread` is the standard deviation of each map in pixels."""
    taps = np.exp(-0.5 * (np.arange(3)[:, None] / np.maximum(spread, 0.05)) ** 2)
    taps /= taps[0] + 2 * taps[1] + 2 * taps[2]
    middle, near, far = (per_tile(tap) for tap in taps)
    for axis in (1, 2):
        padded = np.pad(maps, [(0, 0), (2, 2), (0, 0)] if axis == 1 else [(0, 0), (0, 0), (2, 2)], mode="edge")
        length = maps.shape[axis]
        parts = [
            padded[:, start : start + length] if axis == 1 else padded[:, :, start : start + length]
            for start in range(5)
        ]
        maps = middle * parts[2] + near * (parts[1] + parts[3]) + far * (parts[0] + parts[4])
    return np.asarray(maps, dtype=np.float32)


def scan(rng: np.random.Generator, layer: Stains, centres: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n 64 64 3"]:
    """Simulate the stain and the scanner of each tile's centre, with small variations between tiles.

    By the Beer-Lambert law, intensity = white * exp(-concentrations @ colours).
    """
    count = len(centres)
    scans = draw_scans(rng, centres)
    uneven = 1 + UNEVEN * noise(rng, count, 2)
    haematoxylin = (
        blur_maps(layer.haematoxylin * (1 + GRAIN * noise(rng, count, 24)), scans.spread)
        * per_tile(scans.gains[:, 0])
        * uneven
    )
    eosin = blur_maps(layer.eosin, scans.spread) * per_tile(scans.gains[:, 1]) * uneven
    image = np.empty((count, SIZE, SIZE, 3), dtype=np.float32)
    for channel in range(3):
        density = haematoxylin * per_tile(scans.colours[:, 0, channel]) + eosin * per_tile(scans.colours[:, 1, channel])
        light = per_tile(scans.white[:, channel]) * np.exp(-np.maximum(density, 0))
        image[..., channel] = light + SENSOR_NOISE * rng.standard_normal(light.shape, dtype=np.float32)
    return np.asarray(np.clip(np.rint(image * 255), 0, 255), dtype=np.uint8)


_BATCH = 256  # limits memory; changing it changes the images, because batches share one generator


def render(
    rng: np.random.Generator, latents: Latents, centres: Int64[np.ndarray, " n"]
) -> UInt8[np.ndarray, "n 64 64 3"]:
    """Render RGB tiles (64 x 64 px, 1 micrometre per pixel), stained and scanned at the given centres."""
    batches = [np.empty((0, 64, 64, 3), dtype=np.uint8)]
    for start in range(0, len(latents), _BATCH):
        batch = slice(start, start + _BATCH)
        batches.append(scan(rng, _compose(rng, latents.select(batch)), centres[batch]))
    return np.concatenate(batches)


def _compose(rng: np.random.Generator, latents: Latents) -> Stains:
    """Draw the main tissue, and the second tissue on its share of the area."""
    layer = draw_tissue(rng, latents)
    mixed = np.flatnonzero(latents.second >= 0)
    if not len(mixed):
        return layer
    tissue = latents.second[mixed]
    part = Latents(tissue, np.full_like(tissue, -1), np.zeros(len(mixed)), **attributes(rng, tissue))
    other = draw_tissue(rng, part)
    area = _random_region(rng, latents.share[mixed].astype(np.float32))
    layer.haematoxylin[mixed] += area * (other.haematoxylin - layer.haematoxylin[mixed])
    layer.eosin[mixed] += area * (other.eosin - layer.eosin[mixed])
    return layer


def _random_region(rng: np.random.Generator, share: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, "n 64 64"]:
    """Draw a smooth random region (0..1, soft edge) that covers the given fraction of each tile."""
    field = noise(rng, len(share), 2) + 0.3 * noise(rng, len(share), 6)
    ordered = np.sort(field.reshape(len(share), -1), axis=1)
    threshold = ordered[np.arange(len(share)), (share * (ordered.shape[1] - 1)).astype(np.int64)]
    return ramp((per_tile(threshold) - field) * 12 + 0.5)
