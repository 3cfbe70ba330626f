"""Grids of patch tokens from image models, and a model's own pooling applied to single tokens."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipit.errors import ModelError, counted
from clipit.models.trunks import TokenPool, inner_model

Grid = Float[Tensor, "b h w d"]


def square_grid(tokens: Float[Tensor, "b n d"], where: object) -> Grid:
    """Arrange the patch tokens of square images in a square grid.

    Raises:
        ModelError: The number of tokens is not a square number.
    """
    side = math.isqrt(tokens.shape[1])
    if side * side != tokens.shape[1] or not side:
        raise no_tokens(where, f"its {counted(tokens.shape[1], 'token does', 'tokens do')} not form a square grid")
    return tokens.reshape(len(tokens), side, side, tokens.shape[2])


def trunk_grid(module: nn.Module, pixels: Float[Tensor, "b 3 s s"]) -> Grid:
    """Compute the last patch tokens of a vision transformer, or the last feature map of a convolutional network.

    Tokens are those of timm's `forward_features` or of transformers' `last_hidden_state`, normalised as the model's
    pooled tokens are, without class token and registers.

    Args:
        module: Model from timm or transformers, optionally wrapped in clipit's pooling.

    Raises:
        ModelError: The model computes no grid of features.
    """
    model = inner_model(module)
    if isinstance(module, TokenPool) and module.loader == "transformers":
        tokens = model(pixel_values=pixels).last_hidden_state
        prefix = module.prefix
    elif hasattr(model, "forward_features"):
        tokens = model.forward_features(pixels)
        prefix = int(getattr(model, "num_prefix_tokens", 0))
    else:
        raise no_tokens(type(model).__name__, "it has neither patch tokens nor a feature map")
    if not isinstance(tokens, Tensor) or tokens.ndim not in (3, 4):
        raise no_tokens(type(model).__name__, "its last features are not a grid")
    if tokens.ndim == 4:
        return tokens if _channels_are_last(model) else tokens.permute(0, 2, 3, 1)
    if isinstance(module, TokenPool) and module.normalise:
        tokens = model.post_layernorm(tokens)
    return square_grid(tokens[:, prefix:], type(model).__name__)


def pool_each(module: Any, grid: Grid, *, pre_logits: bool = False) -> Float[Tensor, "b h w features"]:
    """Apply a model's pooling, normalisation and head to every token separately, as if the token filled the image.

    The token takes the place of a class token, its mean over patch tokens is the token itself, and attention over one
    token returns its value. Tokens thus pass through the same layers as the pooled features.

    Args:
        module: Model from timm, or a model from timm or transformers wrapped in clipit's pooling.
        grid: Tokens of the model, from `trunk_grid`.
        pre_logits: Whether to skip the last layer of timm's head.
    """
    if isinstance(module, TokenPool):
        return torch.cat([grid, grid], dim=3) if module.pooling == "cls_mean" else grid
    b, h, w, d = grid.shape
    if hasattr(module, "num_prefix_tokens") and not _channels_are_last(module):
        single_tokens = grid.reshape(b * h * w, 1, d).expand(-1, int(module.num_prefix_tokens) + 1, -1)
    else:
        single_tokens = grid.reshape(b * h * w, 1, 1, d)
        single_tokens = single_tokens if _channels_are_last(module) else single_tokens.permute(0, 3, 1, 2)
    pooled: Tensor = module.forward_head(single_tokens, pre_logits=pre_logits)
    return pooled.reshape(b, h, w, -1)


def open_clip_tokens(visual: Any) -> Callable[[Tensor], Tensor] | None:
    """Return a function from normalised pixels to projected patch tokens of an open_clip image tower.

    Tokens pass through the tower's pooling and projection one by one. Returns None for towers whose pooling cannot be
    applied to a single token (modified ResNets, CoCa with two pooling layers).
    """
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    if isinstance(visual, TimmModel) and "pool" not in visual.head._modules:
        return lambda pixels: visual.head(pool_each(visual.trunk, trunk_grid(visual.trunk, pixels)))
    if not isinstance(visual, VisionTransformer) or getattr(visual, "attn_pool_contrastive", None) is not None:
        return None

    def tokens(pixels: Tensor) -> Tensor:
        pooled_by_attention = visual.attn_pool is not None
        output = visual.forward_intermediates(
            pixels, indices=1, normalize_intermediates=not pooled_by_attention, intermediates_only=True
        )
        grid: Tensor = output["image_intermediates"][-1].permute(0, 2, 3, 1)
        if pooled_by_attention:
            b, h, w, d = grid.shape
            grid = visual.ln_post(visual.attn_pool(grid.reshape(-1, 1, d))[:, 0]).reshape(b, h, w, -1)
        return grid if visual.proj is None else grid @ visual.proj

    return tokens


def no_tokens(where: object, reason: str) -> ModelError:
    """Compose the error for a model without patch tokens."""
    return ModelError(
        f"this model provides no patch tokens: {reason}",
        where=where,
        fix="use a vision transformer, or a method that scores windows instead of tokens",
    )


def _channels_are_last(model: Any) -> bool:
    """Return whether a timm model returns feature maps as [b,h,w,c]."""
    return str(getattr(model, "output_fmt", "")) == "NHWC"
