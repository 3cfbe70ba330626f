"""Types that independent packages share."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

TokenCounter = Callable[[Sequence[str]], list[int]]
"""Function that counts tokens per text, special tokens included, without truncation."""

TextEncoder = Callable[[Sequence[str]], Float[np.ndarray, "n dim"]]
"""Function from texts to unit vectors of a VLM's joint space, float32."""
