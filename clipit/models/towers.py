"""What a model package has to give so that a VLM can be made of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from clipit.models.preprocess import Preprocess
from clipit.types import TokenCounter

Tokens = Mapping[str, Tensor]
"""Inputs of a text tower, as its tokeniser makes them."""


def _named_vis(name: str) -> bool:
    """`visual...` in open_clip, CONCH and KEEP, `vision_model`, `visual_projection` in transformers."""
    return name.startswith("vis")


@dataclass(frozen=True)
class Towers:
    """Two frozen towers and their own rules.

    Attributes:
        module: Holds all weights, float32, in evaluation mode.
        preprocess: Of the image tower.
        context_length: Most tokens of a text, special tokens included.
        logit_scale: The trained factor on cosines (inverse temperature).
        source: Where it was loaded from: a folder, a hub id or a built-in name.
        count_tokens: Per text, special tokens included, nothing cut.
        tokenise: Texts to inputs; what exceeds the budget is cut.
        vocabulary: The tokeniser's words or pieces and their ids.
        image: Normalised pixels [b,3,h,w] to un-normalised embeddings [b,d] of the joint space.
        text: Tokens to un-normalised embeddings [b,d] of the joint space.
        raw: Normalised pixels to pooled features [b,raw_dim] before the projection; None where there are none.
        raw_dim: Their length.
        of_image: Whether a weight of `module`, by its name, belongs to the image tower.
    """

    module: nn.Module
    preprocess: Preprocess
    context_length: int
    logit_scale: float
    source: str
    count_tokens: TokenCounter
    tokenise: Callable[[Sequence[str]], Tokens]
    vocabulary: Mapping[str, int]
    image: Callable[[Tensor], Tensor]
    text: Callable[[Tokens], Tensor]
    raw: Callable[[Tensor], Tensor] | None = None
    raw_dim: int | None = None
    of_image: Callable[[str], bool] = _named_vis
