"""Augment a batch with dihedral transforms and stain jitter, drawn per tile from (seed, step, tile id)."""

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8, UInt64
from torch import Tensor

from clipit.config.run import AugmentationConfig
from clipit.errors import DataError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_DRAWS = 7
"""Random numbers per tile: one for the dihedral transform, three gains, three offsets."""
_HE = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Optical densities of haematoxylin, eosin and a residual stain in R, G, B (Ruifrok and Johnston 2001).

The rows are normalised to length 1 before use."""


def tile_keys(ids: Iterable[str]) -> UInt64[np.ndarray, " n"]:
    """Hash each tile id to 64 bits, identically in every process and on every machine."""
    digests = b"".join(hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def augment(
    pixels: UInt8[Tensor, "b 3 h w"], keys: UInt64[np.ndarray, " b"], seed: int, step: int, config: AugmentationConfig
) -> UInt8[Tensor, "b 3 h w"]:
    """Augment a batch on its device.

    The result for a tile depends only on (seed, step, key), not on the other tiles of the batch, their order, or the
    process. Dihedral transforms are exact permutations of pixels (all eight for square tiles, otherwise flips and the
    rotation by 180 degrees). Stain jitter scales and shifts each stain's concentration c in optical density,
    c' = (1 + u) c + v with u, v uniform in [-spread, spread] (Tellez et al. 2019, arXiv 1902.06543; stain
    vectors from Ruifrok and Johnston 2001).

    Args:
        pixels: Tiles with values 0 to 255.
        keys: Hashed tile ids, from `tile_keys`.
        config: Whether to apply dihedral transforms, and the spread of the stain jitter.
    """
    if not config.dihedral and config.stain == 0:
        return pixels
    draws = uniform(keys, seed, step)
    if config.dihedral:
        pixels = _dihedral(pixels, draws[:, 0])
    if config.stain > 0:
        pixels = _stain(pixels, config.stain * (2 * draws[:, 1:] - 1))
    return pixels


def uniform(keys: UInt64[np.ndarray, " b"], seed: int, step: int) -> Float[np.ndarray, "b d"]:
    """Draw random numbers in [0, 1) per tile, with splitmix64 (Steele et al. 2014) as a counter-based generator."""
    if seed < 0 or step < 0:
        raise DataError(f"seed {seed} and step {step} must not be negative", where="augmentation", fix="use 0 or more")
    start = np.asarray([seed], dtype=np.uint64)
    state = _mix(keys ^ _mix(_mix(start + _GOLDEN) ^ np.uint64(step)))
    counters = np.arange(1, _DRAWS + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(state[:, None] + counters[None, :])
    numbers: Float[np.ndarray, "b d"] = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def _mix(value: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    value = value ^ (value >> np.uint64(31))
    return value


def apply_dihedral(pixels: UInt8[Tensor, "b 3 h w"], number: int) -> UInt8[Tensor, "b 3 h2 w2"]:
    """Apply dihedral transform 0 to 7: bit 2 transposes first, then bit 0 flips left-right and bit 1 top-bottom."""
    if number & 4:
        pixels = pixels.transpose(2, 3)
    axes = [axis for bit, axis in ((1, 3), (2, 2)) if number & bit]
    return pixels.flip(axes) if axes else pixels


def _dihedral(pixels: UInt8[Tensor, "b 3 h w"], draws: Float[np.ndarray, " b"]) -> UInt8[Tensor, "b 3 h w"]:
    count = 8 if pixels.shape[2] == pixels.shape[3] else 4
    numbers: Int64[np.ndarray, " b"] = (draws * count).astype(np.int64)
    transformed = torch.empty_like(pixels, memory_format=torch.contiguous_format)
    for number in range(count):
        (rows,) = np.nonzero(numbers == number)
        if rows.size:
            index = torch.from_numpy(rows).to(pixels.device)
            transformed[index] = apply_dihedral(pixels[index], number)
    return transformed


def _stain_matrix() -> Float[np.ndarray, "3 3"]:
    stains = np.asarray(_HE)
    unit: Float[np.ndarray, "3 3"] = stains / np.linalg.norm(stains, axis=1, keepdims=True)
    return unit


def _stain(pixels: UInt8[Tensor, "b 3 h w"], jitter: Float[np.ndarray, "b 6"]) -> UInt8[Tensor, "b 3 h w"]:
    """Scale and shift stain concentrations: one affine map of optical density per tile."""
    stains = _stain_matrix()  # od = c @ stains
    gains, offsets = 1 + jitter[:, :3], jitter[:, 3:]
    # od'[k] = sum_i maps[k, i] od[i] + shift[k]
    maps = np.einsum("ij,bj,jk->bki", np.linalg.inv(stains), gains, stains)
    shifts = offsets @ stains
    weights = torch.from_numpy(maps).to(pixels.device, torch.float32)
    bias = torch.from_numpy(shifts).to(pixels.device, torch.float32)
    flat = pixels.flatten(2)
    log = flat.to(torch.float32).add_(1.0).div_(256.0).log_()  # -od
    result = torch.empty_like(flat)
    for channel in range(3):
        # Not a matrix product, because its rounding may depend on the batch size.
        total = log[:, 0] * weights[:, channel, 0, None]
        for other in (1, 2):
            total = total.addcmul_(log[:, other], weights[:, channel, other, None])
        total = total.sub_(bias[:, channel, None]).exp_().mul_(256.0).sub_(1.0)
        result[:, channel] = total.round_().clamp_(0, 255).to(torch.uint8)
    return result.view(pixels.shape)
