"""Types that rooms on the same floor share without knowing each other."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

TokenCounter = Callable[[Sequence[str]], list[int]]
"""Tokens per text as the text tower counts them: special tokens included, nothing cut."""

TextEncoder = Callable[[Sequence[str]], Float[np.ndarray, "n dim"]]
"""Texts to unit vectors of a VLM's joint space, float32."""
