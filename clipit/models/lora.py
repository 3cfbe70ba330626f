"""LoRA (Hu et al., arXiv 2106.09685) for backbones and VLMs, with peft."""

import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from clipit.config.run import LoraConfig
from clipit.errors import DivergenceError, ModelError, counted, counted_of, shortlist
from clipit.models.loading import foreign_errors, read_model_json
from clipit.models.trunks import TokenPool
from clipit.models.weights import read_tensors, write_tensors
from clipit.output_files.artifacts import write_json

if TYPE_CHECKING:
    import peft

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_QKV = {"qkv", "q", "k", "v", "kv", "q_proj", "k_proj", "v_proj", "query", "key", "value"}
_PROJECTION = {"proj", "out_proj", "o_proj"}
_MLP = {
    "fc1", "fc2", "fc1_g", "fc1_x", "w1", "w2", "w3", "w12",  # timm, DINOv2; SwiGLU packed or with two layers
    "gate_proj", "up_proj", "down_proj", "weights_in", "weights_out",  # transformers 5 and 4
    "c_fc", "c_proj",  # open_clip
}  # fmt: skip
_PATCH_PARENTS = {"patch_embed", "patch_embeddings"}
_PATCHES = {"proj", "projection"}
_PATCH_LAYERS = {"patch_embed", "patch_embedding", "patch_embeddings"}  # CLIP and DINOv3 in transformers
_EXPERTS = {"A", "B"}
"""Names of the image and text experts in a layer of MUSK."""
_KINDS = ("qkv", "projection", "mlp", "patch_embed", "conv")
_DEFAULT = LoraConfig().targets


def target_modules(
    module: nn.Module,
    targets: tuple[str, ...],
    *,
    called: Collection[str] | None = None,
    where: str = "lora.targets",
) -> list[str]:
    """Return the full names of the layers selected by `targets` (kinds or module names).

    The default targets select the kinds that the model contains, or its convolutions if it contains none of them.
    Packed attention layers (PyTorch's `nn.MultiheadAttention`, and `Attention` in open_clip's custom blocks) are of
    kind qkv, and their output projection is adapted with them.

    Args:
        targets: Kinds, module names, or last parts of module names.
        called: Names of the layers called in the forward pass; other layers are not selected. None for no restriction.
        where: Configuration key of the targets, for the error message.

    Raises:
        ModelError: A target matches no layer (the message lists the available ones), or a layer cannot be adapted.
    """
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if (isinstance(layer, nn.Linear | nn.Conv2d) or _is_packed(layer)) and (called is None or name in called)
    }
    packed = {f"{name}.out_proj" for name, layer in layers.items() if _is_packed(layer)}
    unmergeable = {
        name: reason
        for name, layer in layers.items()
        if (reason := "part of packed attention, which kind qkv selects" if name in packed else _obstacle(layer))
    }
    by_kind: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    for name, layer in layers.items():
        kind = _kind(name, layer)
        if kind and name not in unmergeable:
            by_kind[kind].append(name)
    if targets == _DEFAULT:
        targets = tuple(kind for kind in targets if by_kind[kind]) or ("conv",)
    chosen: list[str] = []
    for target in targets:
        matches = (
            by_kind[target] if target in by_kind else [n for n in layers if n == target or n.endswith(f".{target}")]
        )
        kinds = ", ".join(f"{kind} ({len(names)})" for kind, names in by_kind.items() if names)
        if not matches:
            endings = sorted({name.rpartition(".")[2] for name in layers if name not in unmergeable})
            raise ModelError(
                f"LoRA target {target!r} matches no linear or convolution layer of the model",
                where=where,
                fix=f"use a kind of layer ({kinds or 'none'}) or the end of a layer name ({shortlist(endings, 20)})",
            )
        if unmergeable_names := [f"{name} ({unmergeable[name]})" for name in matches if name in unmergeable]:
            raise ModelError(
                "LoRA cannot be merged into these layers, so the model could not be exported: "
                f"{shortlist(unmergeable_names)}",
                where=f"{where}: {target}",
                fix=f"select other layers, or use kinds, which include only mergeable layers: {kinds or 'none'}",
            )
        chosen += [name for name in matches if name not in chosen]
    return chosen


def _is_packed(module: nn.Module) -> bool:
    """Return whether a module is an attention layer that reads packed weights without calling a sub-layer."""
    return isinstance(module, nn.MultiheadAttention) or _is_open_clip_attention(module)


def _is_open_clip_attention(module: nn.Module) -> bool:
    return (type(module).__module__, type(module).__name__) == ("open_clip.transformer", "Attention")


def _obstacle(module: nn.Module) -> str:
    """Return why peft cannot adapt and merge a layer, or "" if it can."""
    if isinstance(module, nn.MultiheadAttention):
        return "" if module.in_proj_weight is not None else "an attention layer with separate q, k and v weights"
    if not isinstance(module, nn.Conv2d):
        return ""
    if module.groups > 1:
        return f"a convolution with {counted(module.groups, 'group')}"
    if type(module) is not nn.Conv2d:  # standardised weights, or padding that depends on the input
        return f"a {type(module).__name__}"
    if set(module.dilation) != {1}:
        return f"a convolution with dilation {module.dilation}"
    return "" if module.padding_mode == "zeros" else f"a convolution with {module.padding_mode} padding"


def add_lora(
    backbone: nn.Module, config: LoraConfig, *, names: Sequence[str] | None = None, base_name: str | None = None
) -> nn.Module:
    """Freeze a model and add trainable low-rank updates to its target layers.

    The model is modified in place; use the returned module. The initial updates are zero.

    Args:
        backbone: Backbone, or the module of a VLM.
        config: Rank, alpha, dropout and targets.
        names: Full names of the layers to adapt; None to select them by `config.targets`.
        base_name: Name of the base model to record in the adapter.

    Raises:
        ModelError: There are no targets, a target matches no layer, or peft cannot adapt a layer.
    """
    import peft

    if not config.targets:
        raise ModelError("no LoRA targets", where="lora.targets", fix=f"set it to one or more of: {', '.join(_KINDS)}")
    # peft matches the names in a list as suffixes, which both towers may share; a regular expression matches exactly
    exact = None if names is None else "|".join(map(re.escape, names))
    names = target_modules(backbone, config.targets) if names is None else names
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=exact or list(names)
    )
    adapted = _inject(backbone, settings, f"The layers to be adapted: {shortlist(names)}.")
    # set afterwards, because peft overwrites it with an attribute of the module, which timm models lack
    adapted.peft_config["default"].base_model_name_or_path = base_name
    return adapted  # type: ignore[no-any-return]


def load_lora(module: nn.Module, folder: Path) -> nn.Module:
    """Merge an adapter in peft's format into a model, in place, and return the model.

    Only the adapter's rank, alpha and target layers are used.

    Raises:
        ModelError: The adapter is damaged, or belongs to a different model.
    """
    import peft

    values = read_model_json(folder / ADAPTER_CONFIG)
    with foreign_errors("LoRA", where=folder, hint="The adapter may belong to a different model."):
        rank, alpha, names = int(values["r"]), float(values["lora_alpha"]), values["target_modules"]
        with torch.random.fork_rng(devices=[]):  # peft draws random numbers for initial factors
            adapted = _inject(module, peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=names), "")
        tensors = read_tensors(folder / ADAPTER_WEIGHTS)
        report = peft.set_peft_model_state_dict(adapted, tensors)
    factors = [name for name, _ in adapted.named_parameters() if "lora_" in name]
    if report.unexpected_keys or len(factors) != len(tensors):
        raise ModelError(
            f"the adapter has {counted(len(tensors), 'weight')}, but the model expects {len(factors)}"
            + (f"; unknown: {shortlist(report.unexpected_keys)}" if report.unexpected_keys else ""),
            where=folder / ADAPTER_WEIGHTS,
            fix="use the adapter with the model that it was trained on",
        )
    return merge_lora(adapted)


def _inject(module: nn.Module, settings: "peft.LoraConfig", hint: str) -> Any:
    import peft

    with foreign_errors("LoRA", hint=hint):
        from clipit.models.lora_attention import OpenClipAttention, PackedAttention
        from clipit.models.lora_linear import LoraLinear

        packed = {type(layer): layer for layer in module.modules() if _is_packed(layer)}
        adapters: dict[type[nn.Module], type[nn.Module]] = {
            kind: OpenClipAttention if _is_open_clip_attention(layer) else PackedAttention
            for kind, layer in packed.items()
        }
        settings._register_custom_module(adapters | {nn.Linear: LoraLinear})
        with warnings.catch_warnings():  # peft reads an attribute that transformers renames in its next version
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            return peft.get_peft_model(module, settings)


def check_gradients(module: nn.Module) -> None:
    """Check after the first backward pass that every LoRA layer has received a gradient.

    Factor B is zero at the start, which makes the gradient of factor A zero; only that of B must be non-zero.

    Raises:
        ModelError: Some layers received no gradient; a layer whose weight is read without calling it cannot be adapted.
    """
    factors = {name: weight for name, weight in module.named_parameters() if "lora_" in name}
    if not factors:
        raise ModelError("no LoRA parameters in the model", where="backbone.tuning", fix="add LoRA first")
    idle = [
        name
        for name, weight in factors.items()
        if weight.grad is None or ("lora_B" in name and not bool(weight.grad.any()))
    ]
    if idle:
        raise ModelError(
            f"{counted_of(len(idle), len(factors), 'LoRA weight receives', 'LoRA weights receive')} no gradient: "
            f"{shortlist(idle)}",
            where="lora.targets",
            fix="remove these layers from the targets: their output does not reach the loss",
        )


def merge_lora(module: nn.Module) -> nn.Module:
    """Merge the updates into the weights, in place, and return the plain model without LoRA layers.

    Raises:
        DivergenceError: The updates are not finite.
    """
    merge = getattr(module, "merge_and_unload", None)
    if merge is None:
        return module
    try:
        merged: nn.Module = merge(safe_merge=True)
    except ValueError as error:  # raised by peft if weights are not finite
        raise DivergenceError(
            f"the LoRA updates cannot be added to the model: {error}",
            where="the trained weights",
            fix="the training diverged: lower training.learning_rate, or check the backbone's weights",
        ) from error
    return merged


@contextmanager
def merged_lora(module: nn.Module) -> Iterator[None]:
    """Merge the updates into the weights inside the `with` block, so that adapted layers are as fast as plain ones.

    The original weights are then restored exactly. Within the block, gradients do not reach the updates.
    Packed attention layers are not merged, and keep applying their updates in every forward pass. Nothing is merged if
    LoRA dropout is active, or if weights have half precision, which would round updates away.
    """
    from peft.tuners.lora.layer import Conv2d, Linear, MultiheadAttention

    packed = {part for layer in module.modules() if isinstance(layer, MultiheadAttention) for part in layer.modules()}
    layers = [layer for layer in module.modules() if isinstance(layer, Linear | Conv2d) and layer not in packed]
    weights = [weight for layer in layers for weight in layer.get_base_layer().parameters()]
    dropout = any(
        isinstance(part, nn.Dropout) and part.training and part.p > 0 for layer in layers for part in layer.modules()
    )
    if dropout or any(weight.dtype.itemsize < torch.float32.itemsize for weight in weights):
        yield
        return
    values = [weight.data for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                weight.data = weight.data.clone()  # because the update is added in place
            for layer in layers:
                layer.merge()
        yield
    finally:
        for layer in layers:
            layer.merged_adapters.clear()
        for weight, value in zip(weights, values, strict=True):
            weight.data = value


def save_adapter(module: nn.Module, folder: Path) -> None:
    """Write the adapter in peft's format, for `PeftModel.from_pretrained` on the timm or transformers model.

    Layers are named as in that model, without clipit's `TokenPool` around it.

    Raises:
        ModelError: The module has no adapter.
    """
    save = getattr(module, "save_pretrained", None)
    if save is None or not hasattr(module, "peft_config"):
        raise ModelError("no LoRA parameters in the model", where="backbone.tuning", fix="add LoRA first")
    save(str(folder), save_embedding_layers=False)  # otherwise peft also looks up the base model on the Hub
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    values = read_model_json(folder / ADAPTER_CONFIG)
    if isinstance(values.get("target_modules"), list):  # peft writes a set, whose order differs between processes
        write_json(folder / ADAPTER_CONFIG, values | {"target_modules": sorted(values["target_modules"])})
    base = module.get_base_model()  # type: ignore[operator]
    if isinstance(base, TokenPool):
        _strip_pooling(folder, type(base.trunk))


def _strip_pooling(folder: Path, kind: type) -> None:
    """Remove the prefix of `TokenPool` from a saved adapter's layer names; `kind` is the class of the wrapped model."""
    from safetensors.torch import load_file

    weights, description = folder / ADAPTER_WEIGHTS, folder / ADAPTER_CONFIG
    outer, inner = "base_model.model.", "trunk."
    write_tensors(weights, {name.replace(outer + inner, outer, 1): value for name, value in load_file(weights).items()})
    values = read_model_json(description)
    values["target_modules"] = sorted(name.removeprefix(inner) for name in values["target_modules"])
    values["auto_mapping"] = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
    write_json(description, values)


def _kind(name: str, module: nn.Module) -> str | None:
    if _is_packed(module):
        return "qkv"
    *parents, last = (part for part in name.split(".") if part not in _EXPERTS)
    if isinstance(module, nn.Conv2d):
        if last in _PATCH_LAYERS or (_PATCH_PARENTS & set(parents) and last in _PATCHES):
            return "patch_embed"
        return _kind_in_block(parents, last) or "conv"
    return _kind_in_block(parents, last)


def _kind_in_block(parents: list[str], last: str) -> str | None:
    """Return the kind of a layer in a transformer block; None for other layers."""
    parent = parents[-1].lower() if parents else ""
    if last == "dense":  # transformers 4: attention.output.dense, and intermediate.dense, output.dense of the MLP
        if parent == "output" and "attention" in parents:
            return "projection"
        return "mlp" if parent in ("intermediate", "output") else None
    if "attn" in parent or "attention" in parent or (parent == "self" and "attention" in parents):  # self: BERT
        if last in _QKV:
            return "qkv"
        return "projection" if last in _PROJECTION else None
    return "mlp" if last in _MLP and ("mlp" in parent or "ffn" in parent) else None
