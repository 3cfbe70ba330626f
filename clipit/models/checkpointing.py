"""Gradient checkpointing (Chen et al., arXiv 1604.06174) and compilation of a backbone with pooling and LoRA."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from clipit.errors import ModelError
from clipit.models.trunks import inner_model


def set_checkpointing(backbone: nn.Module, enabled: bool) -> bool:
    """Switch gradient checkpointing of a backbone on or off.

    Only the inputs of each block are stored. The backward pass recomputes the activations with the same random
    numbers, so gradients do not change.

    Args:
        backbone: Model from timm or transformers, possibly with clipit's pooling and LoRA.
        enabled: Whether to use checkpointing.

    Returns:
        Whether the model supports it; otherwise nothing is changed.
    """
    model = inner_model(plain_backbone(backbone))
    if hasattr(model, "set_grad_checkpointing"):  # timm
        try:
            model.set_grad_checkpointing(enabled)
        except (AssertionError, NotImplementedError):
            return False
        return True
    if not getattr(model, "supports_gradient_checkpointing", False):  # transformers
        return False
    # transformers 5.23 renamed `gradient_checkpointing_enable` to `activation_checkpointing_enable`.
    method = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if enabled:
        # Reentrant checkpointing computes no gradients if the input of a block requires none, as with LoRA.
        getattr(model, f"{method}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{method}_checkpointing_disable")()
    return True


def compile_backbone(backbone: nn.Module, **options: Any) -> None:
    """Compile a backbone in place with `torch.compile`; the names of its weights do not change.

    Args:
        backbone: Backbone, possibly with LoRA.
        options: Arguments of `torch.compile`.
    """
    plain_backbone(backbone).compile(**options)


@contextmanager
def checkpointed_backbone(backbone: nn.Module, enabled: bool) -> Iterator[None]:
    """Use gradient checkpointing inside the `with` block, if `enabled`."""
    set_checkpointing(backbone, enabled)
    try:
        yield
    finally:
        set_checkpointing(backbone, False)


@contextmanager
def compiled_backbone(backbone: nn.Module, enabled: bool, **options: Any) -> Iterator[None]:
    """Compile a backbone in place for the duration of the `with` block, if `enabled`.

    Args:
        backbone: Backbone, possibly with LoRA.
        enabled: Whether to compile it.
        options: Arguments of `torch.compile`.

    Raises:
        ModelError: `torch.compile` failed.
    """
    if not enabled:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    compile_backbone(backbone, **options)
    try:
        yield
    except TorchDynamoException as error:
        raise ModelError(
            f"torch.compile failed: {' '.join(str(error).split())[:300]}",
            where="training.compile",
            fix="set training.compile=false; on a CPU, torch.compile needs a C++ compiler",
        ) from error
    finally:
        undo_compile(backbone)


def undo_compile(backbone: nn.Module) -> None:
    """Restore the uncompiled backbone."""
    plain_backbone(backbone)._compiled_call_impl = None


def plain_backbone(backbone: nn.Module) -> nn.Module:
    """Return the backbone without peft's wrapper, but with the LoRA layers."""
    module: nn.Module = backbone.get_base_model() if hasattr(backbone, "peft_config") else backbone  # type: ignore[operator]
    return module
