"""Vision models as returned by their loaders, and token pooling."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import nn

from clipit.errors import ModelError
from clipit.models.preprocess import Preprocess

Loader = Literal["timm", "transformers"]
Pooling = Literal["default", "cls", "cls_mean"]

_CPU_PIXELS = 2**18  # pixels per forward pass on a CPU: 64 images of 64 x 64, or 5 of 224 x 224
_CPU_THREADS = 8  # splitting batches has not been measured with more threads


@dataclass(frozen=True)
class TimmSpec:
    """Arguments for rebuilding an architecture with timm, for any number of classes."""

    architecture: str
    model_args: dict[str, Any]
    pretrained_cfg: dict[str, Any]


@dataclass(frozen=True)
class Trunk:
    """A vision model that returns one feature vector per tile.

    Attributes:
        module: Model from normalised float pixels [b,3,h,w] to features [b,d]; a `TokenPool` if clipit pools tokens.
        pooling: Token pooling of `module`; `default` is the package's own.
        source: Folder, Hub id or built-in name that the model was loaded from.
        native_pixels: Edge length of the input in pixels, according to the model's files; `backbone.pixels` may set
            a different one in `preprocess`.
        timm: Arguments for rebuilding the model with timm; None for other packages.
        plain_head: Whether timm's own head is one linear layer over these features.
        remote_code: Whether the model is defined by Python code from its repository.
    """

    module: nn.Module
    preprocess: Preprocess
    dim: int
    pooling: Pooling
    source: str
    native_pixels: int
    timm: TimmSpec | None = None
    plain_head: bool = False
    remote_code: bool = False


def pool_tokens(
    tokens: Float[torch.Tensor, "b n d"], prefix: int, pooling: Literal["cls", "cls_mean"]
) -> Float[torch.Tensor, "b features"]:
    """Return the class token [b,d], or with `cls_mean` the class token and the mean of the patch tokens [b,2d].

    Args:
        tokens: Normalised tokens: class token, registers, patch tokens.
        prefix: Number of tokens before the patch tokens.
    """
    if pooling == "cls":
        return tokens[:, 0]
    return torch.cat([tokens[:, 0], tokens[:, prefix:].mean(dim=1)], dim=1)


class TokenPool(nn.Module):
    """A vision transformer with token pooling.

    Attributes:
        prefix: Number of tokens before the patch tokens (class token and registers).
        normalise: Whether to apply `post_layernorm`, which the model itself applies only to its pooled output.
    """

    def __init__(
        self,
        trunk: nn.Module,
        loader: Loader,
        prefix: int,
        pooling: Literal["cls", "cls_mean"],
        *,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.trunk: Any = trunk
        self.loader = loader
        self.prefix = prefix
        self.pooling: Literal["cls", "cls_mean"] = pooling

    def forward(self, pixels: Float[torch.Tensor, "b 3 h w"]) -> Float[torch.Tensor, "b features"]:
        """Map normalised pixels to pooled features."""
        if self.loader == "timm":
            tokens = self.trunk.forward_features(pixels)
        else:
            tokens = self.trunk(pixel_values=pixels).last_hidden_state
        if self.normalise:
            tokens = self.trunk.post_layernorm(tokens)
        return pool_tokens(tokens, self.prefix, self.pooling)


def check_pixels(pixels: int, step: int, name: str, *, multiple: bool) -> None:
    """Check that an input size gives at least one token or feature, and that the patches cover the input.

    Args:
        pixels: Requested edge in pixels.
        step: Pixels per token, or per cell of the last feature map, along one edge.
        multiple: Whether the edge must be a multiple of the step.

    Raises:
        ModelError: The edge is too small, or not a multiple of the step.
    """
    if pixels < step:
        problem = f"{pixels} pixels are too few: the model needs {step} or more"
    elif multiple and pixels % step:
        problem = f"{pixels} is not a multiple of the patch size of {step} pixels"
    else:
        return
    near = max(1, round(pixels / step)) * step
    raise ModelError(problem, where=f"backbone.pixels, for {name}", fix=f"set backbone.pixels={near}")


def unsupported_size(name: str, pixels: int, native_pixels: int, why: object) -> ModelError:
    """Compose the error for a model that does not support an input size.

    Args:
        pixels: Requested edge in pixels.
        native_pixels: Native edge in pixels.
        why: Reason, or the package's error.
    """
    return ModelError(
        f"an input size of {pixels} pixels is not supported: {' '.join(str(why).split())[:200] or type(why).__name__}",
        where=f"backbone.pixels, for {name}",
        fix=f"remove backbone.pixels (the model's own size is {native_pixels}), or choose a different backbone",
    )


def inner_model(module: nn.Module) -> Any:
    """Return the package's own model, without clipit's pooling."""
    return module.trunk if isinstance(module, TokenPool) else module


def channels_last(module: nn.Module) -> nn.Module:
    """Convert a module to the memory format of `Preprocess.normalise`."""
    converted: nn.Module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return converted


def cpu_parts(pixels: Float[torch.Tensor, "b 3 h w"]) -> tuple[torch.Tensor, ...]:
    """Split a batch on a CPU into small parts, which are encoded faster than the whole batch.

    A batch on a GPU, or on a CPU with more than 8 threads, is returned as a single part.

    The activations of a part mostly stay below 32 MB. The allocator returns larger blocks to the operating system after
    each layer; in small networks, zeroing their pages again takes longer than the layer itself.
    """
    max_tiles = max(1, _CPU_PIXELS // (pixels.shape[-2] * pixels.shape[-1]))
    if pixels.device.type != "cpu" or len(pixels) <= max_tiles or torch.get_num_threads() > _CPU_THREADS:
        return (pixels,)
    count = -(-len(pixels) // max_tiles)
    parts: tuple[torch.Tensor, ...] = torch.split(pixels, -(-len(pixels) // count))
    return parts
