"""Latents to tiles."""

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from clipit.synthetic.fields import noise, per_tile, ramp
from clipit.synthetic.latents import Latents, attributes
from clipit.synthetic.stain import scan
from clipit.synthetic.tissues import Stains, draw_tissue

_BATCH = 256  # bounds the memory; part of the draw, as each batch goes on with the same generator


def render(
    rng: np.random.Generator, latents: Latents, centres: Int64[np.ndarray, " n"]
) -> UInt8[np.ndarray, "n 64 64 3"]:
    """RGB tiles (64 x 64 px, at 1 micrometre per pixel) of these latents, stained and scanned at these centres."""
    parts = [np.empty((0, 64, 64, 3), dtype=np.uint8)]
    for start in range(0, len(latents), _BATCH):
        part = slice(start, start + _BATCH)
        parts.append(scan(rng, _compose(rng, latents.select(part)), centres[part]))
    return np.concatenate(parts)


def _compose(rng: np.random.Generator, latents: Latents) -> Stains:
    """The main tissue with the second one over its share of the area."""
    layer = draw_tissue(rng, latents)
    mixed = np.flatnonzero(latents.second >= 0)
    if not len(mixed):
        return layer
    tissue = latents.second[mixed]
    part = Latents(tissue, np.full_like(tissue, -1), np.zeros(len(mixed)), **attributes(rng, tissue))
    other = draw_tissue(rng, part)
    area = _area(rng, latents.share[mixed].astype(np.float32))
    layer.haematoxylin[mixed] += area * (other.haematoxylin - layer.haematoxylin[mixed])
    layer.eosin[mixed] += area * (other.eosin - layer.eosin[mixed])
    return layer


def _area(rng: np.random.Generator, share: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, "n 64 64"]:
    """A smooth random region that covers this share of each tile (0..1, soft edge)."""
    field = noise(rng, len(share), 2) + 0.3 * noise(rng, len(share), 6)
    ordered = np.sort(field.reshape(len(share), -1), axis=1)
    cut = ordered[np.arange(len(share)), (share * (ordered.shape[1] - 1)).astype(np.int64)]
    return ramp((per_tile(cut) - field) * 12 + 0.5)
