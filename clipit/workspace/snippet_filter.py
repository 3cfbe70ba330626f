"""Snippet filter by prompts: keep snippets that are more similar to morphology than to boilerplate prompts."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from clipit.config.run import ReportsConfig
from clipit.prompts.prompt_set import load_prompt_bag
from clipit.types import TextEncoder
from clipit.vectors import centred


def filter_prompt_bags(config: ReportsConfig) -> dict[str, str]:
    """Return the prompt bags of the filter: `morphology` (to keep), then `boilerplate` (to drop); empty if disabled."""
    if config.morphology_prompts is None or config.boilerplate_prompts is None:
        return {}
    return {"morphology": config.morphology_prompts, "boilerplate": config.boilerplate_prompts}


def score_morphology(texts: Sequence[str], encode: TextEncoder, config: ReportsConfig) -> Float[np.ndarray, "n"]:
    """Score texts by the similarity to the nearest morphology prompt minus that to the nearest boilerplate prompt.

    Embeddings are centred first: text embeddings lie in a narrow cone, so any two texts would be similar.

    Args:
        config: Section `reports` with both prompt sets.
    """
    if not texts:
        return np.zeros(0)
    embedded = encode(texts)
    mean = embedded.mean(axis=0)
    nearest = [
        (centred(embedded, mean) @ centred(encode(load_prompt_bag(name).texts), mean).T).max(axis=1)
        for name in filter_prompt_bags(config).values()
    ]
    return np.asarray(nearest[0] - nearest[1], dtype=np.float64)
