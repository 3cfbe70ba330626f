"""Concentration maps of haematoxylin and eosin for the eight tissues."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from clipit.synthetic.fields import COLUMNS, ROWS, SIZE, Maps, make_spots, noise, per_tile, ramp, splat
from clipit.synthetic.latents import (
    ADIPOSE,
    HIGH,
    LOW,
    LYMPHOID,
    MUCIN,
    NECROSIS,
    NORMAL,
    STROMA,
    Latents,
)


@dataclass(frozen=True)
class Stains:
    """Concentrations of the two stains (0: glass, about 1: fully stained), which drawing modifies in place."""

    haematoxylin: Maps
    eosin: Maps


def scatter(counts: Int64[np.ndarray, " n"]) -> tuple[Int64[np.ndarray, " m"], int]:
    """Return the tile of each spot, for `counts[i]` spots on tile i, and the total number of spots."""
    tile = np.repeat(np.arange(len(counts)), counts)
    return tile, len(tile)


def nuclei(
    rng: np.random.Generator,
    layer: Stains,
    counts: Int64[np.ndarray, " n"],
    radius: object,
    spread: object,
    stretch: tuple[float, float] = (1.0, 1.15),
    angle: object | None = None,
    depth: tuple[float, float] = (0.9, 1.2),
) -> None:
    """Draw nuclei at random positions, with log-normal radii.

    Args:
        layer: Stains of the tiles, modified in place.
        counts: Number of nuclei per tile.
        radius: Median radius in pixels, one value or one per tile.
        spread: Standard deviation of the logarithm of the radius, one value or one per tile.
        stretch: Range of the elongation.
        angle: Mean direction per tile in radians; None for random directions.
        depth: Range of the concentration of haematoxylin.
    """
    tile, count = scatter(counts)
    size = np.broadcast_to(np.asarray(radius, dtype=np.float32), counts.shape)[tile]
    scale = np.broadcast_to(np.asarray(spread, dtype=np.float32), counts.shape)[tile]
    size = np.clip(size * np.exp(scale * rng.standard_normal(count, dtype=np.float32)), 0.8, 7.0)
    rotation = rng.uniform(0, np.pi, count) if angle is None else np.asarray(angle)[tile] + rng.normal(0, 0.25, count)
    spots = make_spots(
        tile,
        rng.uniform(-2, SIZE + 2, count),
        rng.uniform(-2, SIZE + 2, count),
        size,
        rng.uniform(*stretch, count),
        rotation,
        rng.uniform(*depth, count),
    )
    splat(layer.haematoxylin, spots)


def _flat(count: int, haematoxylin: float, eosin: float) -> Stains:
    return Stains(
        np.full((count, SIZE, SIZE), haematoxylin, dtype=np.float32),
        np.full((count, SIZE, SIZE), eosin, dtype=np.float32),
    )


def _fibres(rng: np.random.Generator, latents: Latents) -> tuple[Maps, Float32[np.ndarray, " n"]]:
    """Draw wavy parallel fibres (0..1); return them with their directions in radians."""
    count = len(latents)
    angle = rng.uniform(0, np.pi, count).astype(np.float32)
    if latents.direction is not None:
        angle = latents.direction
    across = ROWS * per_tile(np.cos(angle)) - COLUMNS * per_tile(np.sin(angle))
    wave = across * per_tile(rng.uniform(0.6, 1.2, count)) + 1.6 * noise(rng, count, 4) + 0.5 * noise(rng, count, 10)
    return np.asarray(0.5 + 0.5 * np.sin(wave), dtype=np.float32), angle


def _adipose(rng: np.random.Generator, latents: Latents) -> Stains:
    count = len(latents)
    side = 3 + (rng.random(count) < 0.3 + 0.2 * latents.dens)  # 9 or 16 fat cells
    nearest = np.full((count, SIZE, SIZE), 1e9, dtype=np.float32)
    second = nearest.copy()
    rows, columns = ROWS + 1.5 * noise(rng, count, 5), COLUMNS + 1.5 * noise(rng, count, 5)
    for cell in range(36):  # a jittered grid two cells wider than the tile
        step = SIZE / side
        y = ((cell // 6) - 0.5 + rng.uniform(-0.38, 0.38, count)) * step
        x = ((cell % 6) - 0.5 + rng.uniform(-0.38, 0.38, count)) * step
        distance = (rows - per_tile(y)) ** 2 + (columns - per_tile(x)) ** 2
        second = np.minimum(second, np.maximum(nearest, distance))
        nearest = np.minimum(nearest, distance)
    gap = np.sqrt(second) - np.sqrt(nearest)
    membrane = ramp(1.6 - gap / per_tile(rng.uniform(1.2, 2.2, count)))
    layer = Stains(0.12 * membrane, 0.03 + 0.75 * membrane)
    nuclei(rng, layer, rng.poisson(1.0, count), 1.6, 0.15, (1.2, 1.6))
    return layer


def _lymphoid(rng: np.random.Generator, latents: Latents) -> Stains:
    layer = _flat(len(latents), 0.16, 0.32)
    layer.eosin[:] += 0.07 * noise(rng, len(latents), 8)
    nuclei(rng, layer, rng.poisson(70 + 35 * latents.dens), 2.5, 0.1, (1.0, 1.1), depth=(1.0, 1.35))
    return layer


def _mucin(rng: np.random.Generator, latents: Latents) -> Stains:
    count = len(latents)
    pale = noise(rng, count, 4)
    strands = ramp(1.0 - np.abs(noise(rng, count, 5) + 0.4 * noise(rng, count, 10)) / 0.12)
    layer = Stains(0.10 + 0.03 * pale + 0.12 * strands, 0.12 + 0.04 * pale + 0.22 * strands)
    nuclei(rng, layer, rng.poisson(2 + 2 * latents.dens), 1.8, 0.15)
    return layer


def _stroma(rng: np.random.Generator, latents: Latents) -> Stains:
    count = len(latents)
    fibres, angle = _fibres(rng, latents)
    layer = Stains(0.05 + 0.04 * fibres, 0.38 + 0.34 * fibres + 0.08 * noise(rng, count, 3))
    nuclei(rng, layer, rng.poisson(7 + 6 * latents.dens), 1.9, 0.12, (1.35, 1.9), angle)
    return layer


def _glands(
    rng: np.random.Generator,
    layer: Stains,
    present: Int64[np.ndarray, "n k"],
    centres: Float32[np.ndarray, "n k 2"],
    radius: Float32[np.ndarray, "n k"],
    ragged: float,
    goblets: bool,
    nuclear_radius: float,
) -> None:
    """Draw up to k glands on each tile: epithelium with a lumen, a ring of nuclei, and vacuoles of goblet cells."""
    count, slots = present.shape
    for slot in range(slots):
        rotation, squeeze = rng.uniform(np.zeros(count), np.pi), rng.uniform(np.ones(count), 1.0 + 2 * ragged)
        rows = ROWS - per_tile(centres[:, slot, 0])
        columns = COLUMNS - per_tile(centres[:, slot, 1])
        along = (columns * per_tile(np.cos(rotation)) + rows * per_tile(np.sin(rotation))) / per_tile(squeeze)
        across = (rows * per_tile(np.cos(rotation)) - columns * per_tile(np.sin(rotation))) * per_tile(squeeze)
        distance = np.sqrt(along**2 + across**2) + 8 * ragged * noise(rng, count, 5)
        edge = per_tile(radius[:, slot])
        shown = per_tile(present[:, slot])
        wall = shown * ramp(edge - distance + 0.5)
        hole = shown * ramp(0.45 * edge - distance + 0.5)
        layer.haematoxylin[:] = layer.haematoxylin * (1 - wall) + 0.22 * wall * (1 - hole)
        layer.eosin[:] = layer.eosin * (1 - wall) + 0.42 * wall * (1 - hole) + 0.02 * hole
        tile, total = scatter(present[:, slot] * np.rint(radius[:, slot] * 1.7).astype(np.int64))
        around = rng.uniform(0, 2 * np.pi, total)
        out = radius[tile, slot] * rng.normal(0.84, 0.04 + 0.25 * ragged, total)
        u, v = out * np.cos(around) * squeeze[tile], out * np.sin(around) / squeeze[tile]
        cos, sin = np.cos(rotation[tile]), np.sin(rotation[tile])
        x = centres[tile, slot, 1] + u * cos - v * sin
        y = centres[tile, slot, 0] + u * sin + v * cos
        pointing = np.arctan2(y - centres[tile, slot, 0], x - centres[tile, slot, 1])
        size = nuclear_radius * np.exp(rng.normal(0, 0.12 + 0.1 * ragged, total))
        splat(layer.haematoxylin, make_spots(tile, x, y, size, 1.25, pointing, rng.uniform(0.9, 1.15, total)))
        if goblets:
            tile, total = scatter(present[:, slot] * rng.integers(1, 6, count))
            around, out = rng.uniform(0, 2 * np.pi, total), 0.62 * radius[tile, slot]
            vacuoles = np.zeros_like(layer.eosin)
            x = centres[tile, slot, 1] + out * np.cos(around)
            y = centres[tile, slot, 0] + out * np.sin(around)
            splat(vacuoles, make_spots(tile, x, y, rng.uniform(1.3, 2.2, total), 1.0, 0.0, 1.0))
            layer.haematoxylin[:] *= 1 - 0.8 * vacuoles
            layer.eosin[:] *= 1 - 0.85 * vacuoles


def _grid_centres(rng: np.random.Generator, count: int, side: int, jitter: float) -> Float32[np.ndarray, "n k 2"]:
    step = SIZE / side
    grid = (np.stack(np.meshgrid(range(side), range(side), indexing="ij"), -1).reshape(-1, 2) + 0.5) * step
    shift = rng.uniform(-0.5, 0.5, (count, 1, 2)) * step
    return (grid[None] + shift + rng.normal(0, jitter, (count, side * side, 2))).astype(np.float32)


def _normal(rng: np.random.Generator, latents: Latents) -> Stains:
    count = len(latents)
    fibres, _ = _fibres(rng, latents)
    layer = Stains(0.08 + 0.04 * fibres, 0.34 + 0.16 * fibres)
    nuclei(rng, layer, rng.poisson(8 + 5 * latents.dens), 1.8, 0.12, (1.0, 1.5))
    present = (rng.random((count, 9)) < 0.9).astype(np.int64)
    radius = (rng.uniform(7.8, 9.6, (count, 1)) * rng.uniform(0.93, 1.07, (count, 9))).astype(np.float32)
    _glands(rng, layer, present, _grid_centres(rng, count, 3, 1.2), radius, 0.05, True, 1.7)
    return layer


def _tumour(rng: np.random.Generator, latents: Latents) -> Stains:
    """Draw a tumour of either grade; the grades differ in nuclei and glands, whose distributions overlap."""
    count = len(latents)
    high = latents.tissue == HIGH
    base = noise(rng, count, 6)
    layer = Stains(0.16 + 0.04 * base, 0.36 + 0.06 * base)
    solid = np.where(latents.gland == 2, 10, np.where(latents.gland == 1, 30, 44)) + 8 * latents.dens
    size = 2.25 + 0.45 * latents.pleo + 0.25 * high
    nuclei(rng, layer, rng.poisson(solid), size, 0.10 + 0.13 * latents.pleo, (1.0, 1.3))
    chance = np.where(latents.gland == 2, 0.85, np.where(latents.gland == 1, 0.4, 0.0))
    present = (rng.random((count, 4)) < chance[:, None]).astype(np.int64)
    radius = rng.uniform(8.0, 15.0, (count, 4)).astype(np.float32)
    _glands(rng, layer, present, _grid_centres(rng, count, 2, 4.0), radius, 0.22, False, 2.2)
    if latents.status is not None and latents.status.any():
        _mutated_cytoplasm(rng.spawn(1)[0], layer, np.flatnonzero(latents.status))
    return layer


def _mutated_cytoplasm(rng: np.random.Generator, layer: Stains, shown: Int64[np.ndarray, " m"]) -> None:
    """Draw the mutant morphology on these tiles: bluish cytoplasm with clear vacuoles."""
    tile, total = scatter(rng.poisson(50, len(shown)))
    vacuoles = np.zeros((len(shown), SIZE, SIZE), dtype=np.float32)
    x, y = rng.uniform(0, SIZE, (2, total))
    splat(vacuoles, make_spots(tile, x, y, rng.uniform(1.5, 2.0, total), 1.0, 0.0, 1.0))
    haematoxylin, eosin = layer.haematoxylin[shown], layer.eosin[shown]
    cytoplasm = ramp((0.6 - haematoxylin) / 0.15)
    remaining = 1 - 0.8 * vacuoles * cytoplasm
    layer.haematoxylin[shown] = np.maximum(haematoxylin * remaining + 0.08 * cytoplasm, 0)
    layer.eosin[shown] = np.maximum(eosin * remaining - 0.12 * cytoplasm, 0)


def _necrosis(rng: np.random.Generator, latents: Latents) -> Stains:
    layer = Stains(*granules(rng, len(latents)))
    nuclei(rng, layer, rng.poisson(18 + 14 * latents.dens), 0.95, 0.35, (1.0, 1.5), depth=(0.6, 1.1))
    return layer


def granules(rng: np.random.Generator, count: int) -> tuple[Maps, Maps]:
    """Draw haematoxylin and eosin maps of granular debris, as in necrosis."""
    fine = noise(rng, count, 32) + 0.8 * noise(rng, count, 16)
    return np.asarray(0.09 + 0.03 * fine, np.float32), np.asarray(0.45 + 0.12 * fine, np.float32)


_TISSUES: dict[int, Callable[[np.random.Generator, Latents], Stains]] = {
    ADIPOSE: _adipose,
    LYMPHOID: _lymphoid,
    MUCIN: _mucin,
    STROMA: _stroma,
    NORMAL: _normal,
    LOW: _tumour,
    HIGH: _tumour,
    NECROSIS: _necrosis,
}


def draw_tissue(rng: np.random.Generator, latents: Latents) -> Stains:
    """Draw concentration maps of the main tissue, overlaid with mucin, necrosis and inflammation."""
    count = len(latents)
    layer = _flat(count, 0.0, 0.0)
    for tissue, draw in _TISSUES.items():
        chosen = np.flatnonzero(latents.tissue == tissue)
        if len(chosen):
            drawn = draw(rng, latents.select(chosen))
            layer.haematoxylin[chosen], layer.eosin[chosen] = drawn.haematoxylin, drawn.eosin
    pools = ramp((noise(rng, count, 3) + per_tile(latents.mucin) - 2.2) * 3)
    pools *= per_tile(latents.tissue != MUCIN)
    layer.haematoxylin[:] = layer.haematoxylin * (1 - pools) + 0.10 * pools
    layer.eosin[:] = layer.eosin * (1 - pools) + 0.10 * pools
    debris_h, debris_e = granules(rng, count)
    dead = ramp((noise(rng, count, 3) - 0.3) * 4) * per_tile((latents.nec > 0) & (latents.tissue != NECROSIS))
    layer.haematoxylin[:] = layer.haematoxylin * (1 - dead) + debris_h * dead
    layer.eosin[:] = layer.eosin * (1 - dead) + debris_e * dead
    nuclei(rng, layer, rng.poisson(np.array([0, 6, 16])[latents.infl]), 1.9, 0.08, (1.0, 1.1), depth=(1.05, 1.35))
    return layer
