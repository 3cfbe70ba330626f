"""Synthetic tiles: patients, centres, latents and images."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64, UInt8

from clipit.images.read_ahead import available_cores
from clipit.synthetic.latents import HIGH, LOW, Latents, draw_latents, stream
from clipit.synthetic.render import render

MPP = 1.0
"""Micrometres per pixel of every synthetic tile; a lymphocyte is about 6 px wide."""

VLM_CENTRES = (0, 1, 2, 3, 4, 5)
"""Centres of the bundled VLM's training tiles; synthetic worlds use other centres."""


def check_centres(centres: Sequence[int], shift_centres: Sequence[int]) -> None:
    """Check that a world's two sets of centres and those of the bundled VLM's training tiles are disjoint.

    Raises:
        ValueError: Two of the sets share a centre.
    """
    if set(centres) & set(shift_centres):
        raise ValueError("centres and shift_centres must not share a centre")
    if {*centres, *shift_centres} & set(VLM_CENTRES):
        raise ValueError(f"centres {VLM_CENTRES} were used to train the bundled VLM; use centres 6 and above")


@dataclass(frozen=True)
class Draw:
    """Tiles with their latents; a patient belongs to one centre."""

    images: UInt8[np.ndarray, "n 64 64 3"]
    latents: Latents
    centres: Int64[np.ndarray, " n"]
    patients: Int64[np.ndarray, " n"]


def draw_tiles(
    seed: int, name: str, count: int, centres: Sequence[int], tiles_per_patient: int = 10, mutated: float = 0.0
) -> Draw:
    """Draw `count` tiles of the given centres from the random stream for this seed and name.

    `mutated` is the fraction of the tumour tiles with the mutant morphology; other tiles do not depend on it.
    """
    patients = np.arange(count, dtype=np.int64) // tiles_per_patient
    latents = tile_latents(seed, name, count)
    if mutated:
        tumour = (latents.tissue == LOW) | (latents.tissue == HIGH)
        shown = tumour & (stream(seed, name, "status").random(count) < mutated)
        latents = replace(latents, status=shown.astype(np.int64))
    n_patients = count // tiles_per_patient + 1
    centre_of_patient = stream(seed, name, "centres").choice(np.asarray(centres, dtype=np.int64), n_patients)
    centre_of_tile = centre_of_patient[patients]
    return Draw(render(stream(seed, name, "pixels"), latents, centre_of_tile), latents, centre_of_tile, patients)


def draw_splits(draw: Callable[[str], Draw], splits: Iterable[str]) -> dict[str, Draw]:
    """Draw the tiles of each split, several splits at a time; each split has its own random stream."""
    names = list(splits)
    with ThreadPoolExecutor(available_cores()) as pool:  # NumPy releases the interpreter lock
        return dict(zip(names, pool.map(draw, names), strict=True))


def tile_latents(seed: int, name: str, count: int) -> Latents:
    """Draw the latents that `draw_tiles` uses for this seed, name and count, without rendering images."""
    return draw_latents(stream(seed, name, "latents"), count)
