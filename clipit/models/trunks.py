"""What a model package has to give so that a backbone can be made of it."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import nn

from clipit.errors import ModelError, explain
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
        own_pixels: Edge of the input that its own files name; `preprocess` has another where `backbone.pixels` asks.
        timm: How timm builds it again; None: it is no timm model.
        plain_head: Whether timm puts one linear layer over these very features.
        remote_code: Whether it is defined by code from its own page.
    """

    module: nn.Module
    preprocess: Preprocess
    dim: int
    pooling: Pooling
    source: str
    own_pixels: int
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


def check_pixels(pixels: int, step: int, name: str, *, multiple: bool) -> None:
    """Refuse an input size that leaves a model no patch or no feature, or of which it would not see the edge.

    Args:
        pixels: Edge asked for.
        step: Pixels per token, or per cell of the last feature map, along one edge.
        name: The backbone, for the message.
        multiple: Whether the edge must be a multiple of the step.

    Raises:
        ModelError: It is too small, or no multiple.
    """
    if pixels < step:
        what = f"{pixels} pixels are too few: it needs {step} or more"
    elif multiple and pixels % step:
        what = f"{pixels} is no multiple of its patch of {step} pixels"
    else:
        return
    near = max(1, round(pixels / step)) * step
    raise ModelError(explain(what, where=f"backbone.pixels, for {name}", fix=f"write backbone.pixels={near}"))


def no_such_size(name: str, pixels: int, own: int, why: object) -> ModelError:
    """The error for a model that cannot be brought to another input size.

    Args:
        name: The backbone.
        pixels: Edge asked for.
        own: Its own edge.
        why: What its package said.
    """
    return ModelError(
        explain(
            f"it does not take tiles of {pixels} pixels: {' '.join(str(why).split())[:200] or type(why).__name__}",
            where=f"backbone.pixels, for {name}",
            fix=f"leave backbone.pixels out (its own size is {own}), or choose another backbone",
        )
    )


def inner_model(module: nn.Module) -> Any:
    """The package's own model, without our pooling around it."""
    return module.trunk if isinstance(module, TokenPool) else module


def channels_last(module: nn.Module) -> nn.Module:
    """The same module; its convolutions' weights lie in memory as `Preprocess.normalise` lays pixels."""
    moved: nn.Module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved
