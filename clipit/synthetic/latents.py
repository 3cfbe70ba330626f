"""Named random streams, and latent variables (tissue class and attributes) of synthetic tiles and sentences."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64


def stream(seed: int, *name: str | int) -> np.random.Generator:
    """Create the random generator for a seed and a name, such as `stream(seed, "vlm", "tiles")`.

    Generators with different names are independent; the same seed and name give the same numbers in all processes.
    """
    label = "/".join(str(part) for part in name)
    key = tuple(int(word) for word in np.frombuffer(hashlib.sha256(label.encode()).digest(), dtype="<u4"))
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=key))


CLASSES = (
    "adipose",
    "lymphoid",
    "mucin",
    "stroma",
    "normal_mucosa",
    "tumour_low_grade",
    "tumour_high_grade",
    "necrosis",
)
ADIPOSE, LYMPHOID, MUCIN, STROMA, NORMAL, LOW, HIGH, NECROSIS = range(8)
ATTRIBUTES = ("infl", "mucin", "pleo", "gland", "nec", "dens")
"""Inflammation, mucin, nuclear pleomorphism, gland formation, necrosis and cell density."""

# Probabilities of the values 0, 1, 2, by class. The two grades overlap at pleo 1 and gland 1, so that neither attribute
# alone determines the grade.
_INFL = (0.5, 0.3, 0.2)
_ABSENT = (1.0, 0.0, 0.0)
_MUCIN = {
    STROMA: (0.75, 0.2, 0.05),
    NORMAL: (0.6, 0.25, 0.15),
    LOW: (0.55, 0.25, 0.2),
    HIGH: (0.65, 0.25, 0.1),
    MUCIN: (0.0, 0.0, 1.0),
}
_PLEO = {LOW: (0.6, 0.4, 0.0), HIGH: (0.0, 0.4, 0.6)}
_GLAND = {NORMAL: (0.0, 0.0, 1.0), LOW: (0.0, 0.4, 0.6), HIGH: (0.6, 0.4, 0.0)}
_NEC = {LOW: (0.9, 0.1, 0.0), HIGH: (0.65, 0.35, 0.0), NECROSIS: (0.0, 1.0, 0.0)}
_DENS = (0.3, 0.4, 0.3)


@dataclass(frozen=True)
class Latents:
    """Latent variables of n tiles, one array entry per tile.

    `tissue` and `second` are indices of `CLASSES` (`second` is -1 without a second tissue), `share` is the area
    fraction of the second tissue (0 to 0.45), and the attributes (`ATTRIBUTES`) have the values 0, 1, 2 (`nec`: 0, 1).
    """

    tissue: Int64[np.ndarray, " n"]
    second: Int64[np.ndarray, " n"]
    share: Float[np.ndarray, " n"]
    infl: Int64[np.ndarray, " n"]
    mucin: Int64[np.ndarray, " n"]
    pleo: Int64[np.ndarray, " n"]
    gland: Int64[np.ndarray, " n"]
    nec: Int64[np.ndarray, " n"]
    dens: Int64[np.ndarray, " n"]
    status: Int64[np.ndarray, " n"] | None = None
    """1 for tumour tiles with the mutant morphology, else 0; None: no tile has it."""
    direction: Float32[np.ndarray, " n"] | None = None
    """Direction of the fibres in radians; None: random directions."""

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.tissue)

    def select(self, keep: Bool[np.ndarray, " n"] | Int64[np.ndarray, " m"] | slice) -> "Latents":
        """Select the latents of a subset of tiles."""
        values: dict[str, Any] = {}
        for field in fields(self):
            column = getattr(self, field.name)
            values[field.name] = None if column is None else column[keep]
        return Latents(**values)

    @classmethod
    def concatenate(cls, parts: Sequence["Latents"]) -> "Latents":
        """Concatenate latents; `status` and `direction` must be set in all of them or in none."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            columns = [getattr(each, field.name) for each in parts]
            values[field.name] = None if columns[0] is None else np.concatenate(columns)
        return cls(**values)


def _values(
    rng: np.random.Generator, tissue: Int64[np.ndarray, " n"], table: dict[int, tuple[float, float, float]]
) -> Int64[np.ndarray, " n"]:
    bounds = np.cumsum([table.get(k, _ABSENT) for k in range(len(CLASSES))], axis=1)
    return np.asarray((rng.random(len(tissue))[:, None] >= bounds[tissue]).sum(axis=1).clip(0, 2), dtype=np.int64)


def attributes(rng: np.random.Generator, tissue: Int64[np.ndarray, " n"]) -> dict[str, Any]:
    """Draw the values of each attribute (int64 `[n]`) for tiles with these tissue classes."""
    all_classes = range(len(CLASSES))
    return {
        "infl": _values(rng, tissue, dict.fromkeys(all_classes, _INFL)),
        "mucin": _values(rng, tissue, _MUCIN),
        "pleo": _values(rng, tissue, _PLEO),
        "gland": _values(rng, tissue, _GLAND),
        "nec": _values(rng, tissue, _NEC),
        "dens": _values(rng, tissue, dict.fromkeys(all_classes, _DENS)),
    }


def draw_latents(rng: np.random.Generator, count: int) -> Latents:
    """Draw the latents of `count` tiles with balanced classes in random order.

    60% of the draws have a second tissue on up to 45% of the area: stroma (70%), or any class. It is dropped if it
    equals the tile's class.
    """
    tissue = rng.permutation(np.arange(count, dtype=np.int64) % len(CLASSES))
    return mixed_latents(rng, tissue, lambda: rng.integers(0, len(CLASSES), count))


def mixed_latents(
    rng: np.random.Generator, tissue: Int64[np.ndarray, " n"], draw_second: Callable[[], Int64[np.ndarray, " n"]]
) -> Latents:
    """Draw the other latents for tiles with these tissue classes.

    Args:
        draw_second: Function that draws one tissue per tile, used as the second tissue instead of stroma in 30% of the
            tiles.
    """
    count = len(tissue)
    other = np.where(rng.random(count) < 0.7, STROMA, draw_second())
    mixed = (rng.random(count) < 0.6) & (other != tissue)
    return Latents(
        tissue=tissue,
        second=np.where(mixed, other, -1).astype(np.int64),
        share=np.where(mixed, rng.uniform(0.0, 0.45, count), 0.0),
        **attributes(rng, tissue),
    )
