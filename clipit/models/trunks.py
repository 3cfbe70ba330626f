"""What a model package has to give so that a backbone can be made of it."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import nn

from clipit.models.preprocess import Preprocess

Loader = Literal["timm", "transformers"]
Pooling = Literal["default", "cls", "cls_mean"]


@dataclass(frozen=True)
class TimmSpec:
    """What timm needs in order to build the same architecture again, with any number of classes."""

    architecture: str
    model_args: dict[str, Any]
    pretrained_cfg: dict[str, Any]


@dataclass(frozen=True)
class Trunk:
    """A vision model that gives one feature vector per tile.

    Attributes:
        module: Normalised float [b,3,h,w] to [b,d]; a `TokenPool` where the package itself does not pool.
        preprocess: Its own.
        dim: Number of features d.
        pooling: What `module` does with tokens; `default`: the package's own.
        source: Where it was loaded from: a folder, a hub id or a built-in name.
        timm: How timm builds it again; None: it is no timm model.
        plain_head: Whether timm puts one linear layer over these very features.
        remote_code: Whether it is defined by code from its own page.
    """

    module: nn.Module
    preprocess: Preprocess
    dim: int
    pooling: Pooling
    source: str
    timm: TimmSpec | None = None
    plain_head: bool = False
    remote_code: bool = False


def pool_tokens(
    tokens: Float[torch.Tensor, "b n d"], prefix: int, pooling: Literal["cls", "cls_mean"]
) -> Float[torch.Tensor, "b features"]:
    """The class token [b,d], or with `cls_mean` the mean of the patches beside it [b,2d].

    Args:
        tokens: Normalised: class token, registers, patches.
        prefix: Number of tokens before the patches.
        pooling: Which of the two.
    """
    if pooling == "cls":
        return tokens[:, 0]
    return torch.cat([tokens[:, 0], tokens[:, prefix:].mean(dim=1)], dim=1)


class TokenPool(nn.Module):
    """A transformer and the pooling of its tokens.

    Attributes:
        trunk: timm's or transformers' own model.
        prefix: Tokens before the patches: the class token and registers.
        pooling: `cls` or `cls_mean`.
    """

    def __init__(self, trunk: nn.Module, loader: Loader, prefix: int, pooling: Literal["cls", "cls_mean"]) -> None:
        super().__init__()
        self.trunk: Any = trunk
        self.loader = loader
        self.prefix = prefix
        self.pooling: Literal["cls", "cls_mean"] = pooling

    def forward(self, pixels: Float[torch.Tensor, "b 3 h w"]) -> Float[torch.Tensor, "b features"]:
        """Normalised pixels to pooled features."""
        if self.loader == "timm":
            tokens = self.trunk.forward_features(pixels)
        else:
            tokens = self.trunk(pixel_values=pixels).last_hidden_state
        return pool_tokens(tokens, self.prefix, self.pooling)


def inner_model(module: nn.Module) -> Any:
    """The package's own model, without our pooling around it."""
    return module.trunk if isinstance(module, TokenPool) else module
