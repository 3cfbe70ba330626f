"""Order by hash: a random order that depends on names and a seed, never on positions."""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, Shaped


def shuffled(names: Shaped[np.ndarray, " n"] | Sequence[str], seed: int, purpose: str) -> Int64[np.ndarray, " n"]:
    """Indices of the names in an order drawn from (seed, purpose, name) only.

    Rows may come in any order, and names that are added or removed leave the order of the others as it is.
    """
    prefix = f"{purpose}:{seed}:".encode()
    values = [str(name) for name in names]
    digests = [hashlib.blake2b(prefix + value.encode(), digest_size=8).digest() for value in values]
    order = sorted(range(len(values)), key=lambda index: (digests[index], values[index]))
    return np.asarray(order, dtype=np.int64)
