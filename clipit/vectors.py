"""Unit vectors: L2 normalisation, and centring with a modality's mean."""

import numpy as np
from jaxtyping import Float, Float32, Float64


def unit(
    vectors: Float32[np.ndarray, "*shape dim"] | Float64[np.ndarray, "*shape dim"],
) -> Float[np.ndarray, "*shape dim"]:
    """Divide vectors by their L2 norm, in the same precision; zero vectors stay zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), dtype=vectors.dtype)


def centred(
    vectors: Float32[np.ndarray, "*shape dim"], mean: Float32[np.ndarray, "dim"] | None
) -> Float32[np.ndarray, "*shape dim"]:
    """Subtract the modality's mean and normalise again; without a mean, return the vectors unchanged."""
    return vectors if mean is None else unit(vectors - mean)
