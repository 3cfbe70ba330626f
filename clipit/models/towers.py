"""The image and text towers of a vision-language model, as its loader returns them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clipit.models.preprocess import Preprocess
from clipit.types import TokenCounter

Tokens = Mapping[str, Tensor]
"""Inputs of a text tower, as its tokeniser returns them."""


def _is_image_part(name: str) -> bool:
    """Match weights of the image tower: `visual...` in open_clip, CONCH and KEEP, `vision_model` in transformers."""
    return name.startswith("vis")


def transformers_token_counter(tokenizer: Any) -> TokenCounter:
    """Return a function that counts tokens per text with a transformers tokeniser, without truncation."""
    return lambda texts: (
        [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]] if texts else []
    )


def transformers_tokenise(tokenizer: Any, context_length: int) -> Callable[[Sequence[str]], Tokens]:
    """Return a function from texts to ids and masks, padded to the longest text and truncated to the context length.

    Texts are always padded on the right, with id 0. Padding on the left would make the positions of a text depend
    on the other texts in its batch, and CLIP models may interpret the highest id of a text as its end.
    """
    tokenizer.padding_side = "right"

    def tokenise(texts: Sequence[str]) -> Tokens:
        options = {"truncation": True, "max_length": context_length, "return_tensors": "pt"}
        inputs = tokenizer(list(texts), padding=True, return_attention_mask=True, **options)
        mask = inputs["attention_mask"]
        return {"input_ids": inputs["input_ids"] * mask, "attention_mask": mask}

    return tokenise


@dataclass(frozen=True)
class Towers:
    """The two towers of a VLM, with its tokeniser and preprocessing.

    Attributes:
        module: Module that contains all weights, in float32 and evaluation mode.
        context_length: Maximum number of tokens of a text, including special tokens.
        logit_scale: Learnt factor that multiplies cosine similarities (inverse temperature).
        source: Folder, Hub id or built-in name that the VLM was loaded from.
        count_tokens: Function that counts the tokens of each text, including special tokens, without truncation.
        tokenise: Function from texts to inputs of the text tower, truncated to the context length.
        vocabulary: Id of each token of the tokeniser.
        image: Function from normalised pixels [b,3,h,w] to un-normalised embeddings [b,d] in the joint space.
        text: Function from tokens to un-normalised embeddings [b,d] in the joint space.
        raw: Function from normalised pixels to pooled features [b,raw_dim] before the projection; None if they
            are not available.
        raw_dim: Dimension of the `raw` features; None if they are not available.
        tokens: Function from normalised pixels to un-normalised patch tokens [b,h,w,d] in the joint space; None if they
            are not available.
        is_image_weight: Function that returns whether a weight of `module`, given by name, is in the image tower.
        save: Function that writes the current weights, tokeniser and preprocessing into an existing folder, in the
            VLM's own format; None if the VLM has no format of its own.
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
    tokens: Callable[[Tensor], Tensor] | None = None
    is_image_weight: Callable[[str], bool] = _is_image_part
    save: Callable[[Path], None] | None = None
