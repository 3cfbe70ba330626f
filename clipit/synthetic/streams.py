"""Random streams by name: what is drawn in one place never shifts what is drawn in another."""

import hashlib

import numpy as np


def stream(seed: int, *name: str | int) -> np.random.Generator:
    """The random generator of this seed and name.

    Two names give statistically independent generators; the same seed and name give the same
    numbers in every process. Used as `stream(seed, "vlm", "tiles")`.
    """
    label = "/".join(str(part) for part in name)
    key = tuple(int(word) for word in np.frombuffer(hashlib.sha256(label.encode()).digest(), dtype="<u4"))
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=key))
