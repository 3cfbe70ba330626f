"""Types that several subpackages share."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

TokenCounter = Callable[[Sequence[str]], list[int]]
"""Function that counts tokens per text, including special tokens and without truncation."""

TextEncoder = Callable[[Sequence[str]], Float[np.ndarray, "n dim"]]
"""Function that embeds texts as float32 unit vectors in a VLM's joint space."""
