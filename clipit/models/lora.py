"""Low-rank adaptation (Hu et al., arXiv 2106.09685) of a backbone, through peft."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipit.config.run import LoraConfig
from clipit.errors import ModelError, explain, shortlist
from clipit.models.loading import foreign_errors

_QKV = {"qkv", "q", "k", "v", "kv", "q_proj", "k_proj", "v_proj", "query", "key", "value"}
_PROJECTION = {"proj", "out_proj", "o_proj"}
_MLP = {
    "fc1", "fc2", "fc1_g", "fc1_x", "w1", "w2", "w3", "w12",  # timm, DINOv2; SwiGLU packed or with two layers
    "gate_proj", "up_proj", "down_proj", "weights_in", "weights_out",  # transformers 5 and 4
}  # fmt: skip
_PATCHES = {"proj", "projection"}
_KINDS = ("qkv", "projection", "mlp", "patch_embed")


def target_modules(backbone: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Full names of the linear and convolution layers that `targets` (kinds or module names) mean.

    Raises:
        ModelError: A target matches nothing that can be adapted; what exists is listed.
    """
    layers = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    by_kind: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    for name, module in layers.items():
        kind = _kind(name, module)
        if kind:
            by_kind[kind].append(name)
    chosen: list[str] = []
    for target in targets:
        # a kind's word means the kind; any other word is a module's name or the end of one
        found = by_kind[target] if target in by_kind else [n for n in layers if n == target or n.endswith(f".{target}")]
        if not found:
            kinds = ", ".join(f"{kind} ({len(names)})" for kind, names in by_kind.items() if names)
            endings = sorted({name.rpartition(".")[2] for name in layers})
            raise ModelError(
                explain(
                    f"LoRA target {target!r} matches no linear or convolution layer of the backbone",
                    where="lora.targets",
                    fix=f"kinds that it has: {kinds or 'none'}; names of its layers end in: {shortlist(endings, 20)}",
                )
            )
        chosen += [name for name in found if name not in chosen]
    return chosen


def add_lora(backbone: nn.Module, config: LoraConfig, *, base_name: str | None = None) -> nn.Module:
    """Freeze a backbone and add trainable low-rank updates to its target layers.

    The backbone itself is changed; use what is returned. At first the updates are zero.

    Args:
        backbone: Any module that maps one tensor to one tensor.
        config: Rank, alpha, dropout and targets.
        base_name: Recorded in the adapter as the model that it belongs to.

    Raises:
        ModelError: No targets, a target that matches nothing, or a layer that peft cannot adapt.
    """
    import peft

    if not config.targets:
        raise ModelError(explain("no LoRA targets", where="lora.targets", fix=f"name some of {', '.join(_KINDS)}"))
    names = target_modules(backbone, config.targets)
    with foreign_errors("LoRA", hint=f"The layers to be adapted: {shortlist(names)}."):
        adapted: Any = peft.get_peft_model(
            backbone,
            peft.LoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,
                lora_dropout=config.dropout,
                target_modules=names,
            ),
        )
    # afterwards, because peft replaces what it is given by the module's own attribute, which timm's lack
    adapted.peft_config["default"].base_model_name_or_path = base_name
    return adapted  # type: ignore[no-any-return]


def check_gradients(module: nn.Module) -> None:
    """After the first backward pass: every LoRA layer has received a gradient.

    The first factor's gradient is zero as long as the second factor is (its start), so that only the second
    one must differ from zero.

    Raises:
        ModelError: Some did not; a layer whose weight is read without calling it cannot be adapted.
    """
    factors = {name: weight for name, weight in module.named_parameters() if "lora_" in name}
    if not factors:
        raise ModelError(explain("no LoRA parameters in the model", where="backbone.tuning", fix="add LoRA first"))
    idle = [
        name
        for name, weight in factors.items()
        if weight.grad is None or ("lora_B" in name and not bool(weight.grad.any()))
    ]
    if idle:
        raise ModelError(
            explain(
                f"{len(idle)} of {len(factors)} LoRA weights receive no gradient: {shortlist(idle)}",
                where="lora.targets",
                fix="take these layers out of the targets: their output does not reach the loss",
            )
        )


def merge_lora(module: nn.Module) -> nn.Module:
    """The plain backbone with the updates added to its weights; the given module is used up.

    Raises:
        ModelError: The updates are not finite.
    """
    merge = getattr(module, "merge_and_unload", None)
    if merge is None:
        return module
    try:
        merged: nn.Module = merge(safe_merge=True)
    except ValueError as error:  # peft's word for weights that are infinite or not a number
        raise ModelError(
            explain(
                f"the LoRA updates cannot be added to the backbone: {error}",
                where="the trained student",
                fix="the training diverged: lower training.learning_rate, or look at the backbone's weights",
            )
        ) from error
    return merged


def lora_state_dict(module: nn.Module) -> Mapping[str, torch.Tensor]:
    """The adapter's tensors as peft names them in `adapter_model.safetensors`."""
    import peft

    tensors: dict[str, torch.Tensor] = peft.get_peft_model_state_dict(module, save_embedding_layers=False)
    return tensors


def save_adapter(module: nn.Module, folder: Path) -> None:
    """Write the adapter in peft's own format, from which `PeftModel.from_pretrained` reads it.

    Raises:
        ModelError: There is no adapter in the module.
    """
    save = getattr(module, "save_pretrained", None)
    if save is None or not hasattr(module, "peft_config"):
        raise ModelError(explain("no LoRA parameters in the model", where="backbone.tuning", fix="add LoRA first"))
    save(str(folder), save_embedding_layers=False)  # else peft looks for the base model's files, also on the hub


def _kind(name: str, module: nn.Module) -> str | None:
    *parents, last = name.split(".")
    parent = parents[-1].lower() if parents else ""
    if {"patch_embed", "patch_embeddings"} & set(parents) and last in _PATCHES and isinstance(module, nn.Conv2d):
        return "patch_embed"
    if last == "dense":  # transformers 4: attention.output.dense, and intermediate.dense, output.dense of the MLP
        if parent == "output" and "attention" in parents:
            return "projection"
        return "mlp" if parent in ("intermediate", "output") else None
    if "attn" in parent or "attention" in parent:
        if last in _QKV:
            return "qkv"
        return "projection" if last in _PROJECTION else None
    return "mlp" if last in _MLP and ("mlp" in parent or "ffn" in parent) else None
