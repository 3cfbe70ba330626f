"""Backbones that timm opens: its own names, hub pages and folders in its format, bare files of weights."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from clipit.config.run import BackboneConfig
from clipit.errors import ModelError, explain
from clipit.models.loading import EMBEDDED, foreign_errors, read_json
from clipit.models.preprocess import preprocess_from_timm
from clipit.models.specs import ModelSpec, similar_names
from clipit.models.trunks import Pooling, TimmSpec, TokenPool, Trunk, check_pixels, no_such_size
from clipit.models.weights import (
    LoadReport,
    load_reports,
    refuse_other_patches,
    refuse_other_structure,
    refuse_unfit,
    tensor_shapes,
)

_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
_OURS = ("architecture", "data")  # keys of a spec's loader that are no arguments of timm.create_model


@dataclass(frozen=True)
class _Request:
    """What is asked of timm: its name for the model, arguments, what replaces its `pretrained_cfg`, local weights."""

    name: str
    hub_id: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None


def load_timm(
    config: BackboneConfig, spec: ModelSpec | None, pooling: Pooling, named: Mapping[str, ModelSpec]
) -> Trunk:
    """Load a timm model; without `pretrained` its weights come from torch's random generator.

    Args:
        config: The configuration.
        spec: The table's entry, when a name of the table was given.
        pooling: What becomes of the tokens.
        named: The table, for what else could have been meant.

    Raises:
        ModelError: Unknown name, missing files, gated or absent weights, features that are not one vector per tile, or
            an input size (`config.pixels`) that it does not take.
    """
    import timm
    from timm.data import resolve_data_config

    asked = _named(config, spec) if spec else _unnamed(config, named)
    asks = config.pretrained and asked.file is None
    with foreign_errors(config.name, asked.hub_id, _hint(asked, spec, named), asked.file, asks_hub=asks):
        shapes = tensor_shapes(asked.file) if asked.file and config.pretrained else None
        with load_reports() as reports:
            module: Any = timm.create_model(
                asked.name,
                pretrained=config.pretrained,
                num_classes=0,
                pretrained_cfg_overlay=asked.data or None,
                **{key: _value(key, value) for key, value in asked.arguments.items()},
            )
        page_arguments = _page_arguments(asked.name)
    module.eval()
    if config.pretrained:
        _check_weights(module, [report for report in reports if report.module is module], asked, spec, shapes)
    preprocess = preprocess_from_timm(resolve_data_config({}, pretrained_cfg=module.pretrained_cfg), config.name)
    arguments = {**page_arguments, **asked.arguments}
    own_pixels = preprocess.size
    if config.pixels not in (None, own_pixels):
        arguments |= _change_size(module, config.pixels, own_pixels, config.name)
        preprocess = preprocess_from_timm(resolve_data_config({}, pretrained_cfg=module.pretrained_cfg), config.name)
    whole: nn.Module = module
    if pooling != "default":
        _check_class_token(module, config.name)
        if pooling == "cls" and module.global_pool in ("", "token"):
            module.reset_classifier(0, "token")  # timm's own pooling, so that the export stays a plain timm model
            arguments["global_pool"] = "token"
        else:
            whole = TokenPool(module, "timm", module.num_prefix_tokens, pooling)
    features = _features(whole, preprocess.size, own_pixels, config.name)
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        raise ModelError(
            explain(
                "it does not give one feature vector per tile",
                where=config.name,
                fix="write backbone.pooling: cls or cls_mean, or choose another backbone",
            )
        )
    rebuilt = TimmSpec(module.pretrained_cfg["architecture"], arguments, dict(module.pretrained_cfg))
    rebuilt = _portable(rebuilt, module) if "mlp_layer" in arguments else rebuilt
    if preprocess.size != own_pixels:
        _check_rebuilt(rebuilt, module, preprocess.size, own_pixels, config.name)
    return Trunk(
        module=whole,
        preprocess=preprocess,
        dim=features.shape[1],
        pooling=pooling if isinstance(whole, TokenPool) else "default",
        source=_origin(config, asked),
        own_pixels=own_pixels,
        timm=rebuilt,
        plain_head=whole is module and _has_plain_head(module, features.shape[1]),
    )


def build_timm(spec: TimmSpec, num_classes: int) -> Any:
    """The same architecture without weights."""
    import timm

    config = {**spec.pretrained_cfg, "num_classes": num_classes}
    return timm.create_model(
        spec.architecture, pretrained=False, pretrained_cfg=config, num_classes=num_classes, **spec.model_args
    )


def build_named(spec: ModelSpec) -> Any:
    """The timm architecture of an entry with its arguments, without weights and without the network."""
    import timm

    asked = _named(BackboneConfig(name=spec.name, pretrained=False), spec)
    arguments = {key: _value(key, value) for key, value in asked.arguments.items()}
    return timm.create_model(
        asked.name, pretrained=False, num_classes=0, pretrained_cfg_overlay=asked.data or None, **arguments
    )


def open_timm(folder: Path, pooling: Literal["default", "cls", "cls_mean"]) -> nn.Module:
    """The model of an exported folder, with our pooling where its own is not enough."""
    import timm

    module: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return module if pooling == "default" else TokenPool(module, "timm", module.num_prefix_tokens, pooling)


def _named(config: BackboneConfig, spec: ModelSpec) -> _Request:
    """The table's rules, over the page, a folder with its files, a bare file of weights, or no weights at all."""
    arguments = {key: value for key, value in spec.loader.items() if key not in _OURS}
    data = dict(spec.loader.get("data", {}))
    on_hub = "/" in spec.source
    architecture = spec.loader["architecture"] if on_hub else spec.source
    if on_hub:  # for what has no page beside it
        size = (3, spec.pixels, spec.pixels)
        own = {"mean": spec.mean, "std": spec.std, "interpolation": spec.interpolation}
        alone: dict[str, Any] = {"input_size": size, "crop_pct": 1.0, **own, **data}
    else:
        alone = data
    if not config.pretrained:
        return _Request(architecture, None, arguments, alone)
    if config.path is None:
        if on_hub:
            return _Request(f"hf-hub:{spec.source}", spec.source, arguments, data)
        return _Request(spec.source, f"timm/{spec.source}", arguments, data)
    path = Path(config.path).expanduser()
    if path.is_dir() and (path / "config.json").is_file():
        _check_folder(path, pretrained=True)
        return _Request(f"local-dir:{path}", None, arguments, data, _weights(path))
    files = [path] if path.is_file() else [path / name for name in _WEIGHTS if (path / name).is_file()]
    if not files:
        raise ModelError(
            explain(
                f"no files of {spec.name}: looked for {', '.join(_WEIGHTS)}",
                where=path,
                fix=f"download them from {spec.page} and give their folder, or one file of weights",
            )
        )
    return _Request(architecture, None, arguments, {**alone, "file": str(files[0])}, files[0])


def _unnamed(config: BackboneConfig, named: Mapping[str, ModelSpec]) -> _Request:
    """timm's name for what is not in the table."""
    import timm

    name = config.name
    if name.startswith("hf-hub:"):
        return _Request(name, name.removeprefix("hf-hub:"))
    folder = EMBEDDED / "backbone" if name == "embedded" else Path(name).expanduser()
    if folder.is_dir():
        _check_folder(folder, config.pretrained)
        return _Request(f"local-dir:{folder}", file=_weights(folder))
    architecture = name.partition(".")[0]
    known = timm.list_models()
    if name == "embedded" or architecture not in known:
        near = [*similar_names(name, named), *difflib.get_close_matches(architecture, known, 5, 0.6)]
        raise ModelError(
            explain(
                "neither a name of clipit's table, nor a timm model, nor a folder",
                where=folder if name == "embedded" else name,
                fix=f"write embedded, a name of the table or of timm (similar: {', '.join(near) or 'none'}), "
                "hf-hub:ID, transformers:ID or a folder in the format of timm or transformers",
            )
        )
    tags = timm.list_pretrained(f"{architecture}*")
    return _Request(name, f"timm/{name}" if name in tags else None)


def _weights(folder: Path) -> Path | None:
    """The file of weights that timm takes from a folder."""
    return next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)


def _check_weights(
    module: Any,
    reports: list[LoadReport],
    asked: _Request,
    spec: ModelSpec | None,
    shapes: Mapping[str, tuple[int, ...]] | None,
) -> None:
    """Nothing stayed random, nothing but a classifier was left over, and a table's name got its own architecture."""
    where = asked.file or asked.hub_id or asked.name
    page = spec.page if spec and spec.page else f"https://huggingface.co/{asked.hub_id}" if asked.hub_id else ""
    fix = f"give the files of {page}" if page else "give weights and config.json of one and the same model"
    if spec is not None:
        fix += "; if yours are another model, name its folder itself instead of this name"
    head = module.pretrained_cfg.get("classifier") or "head"
    heads = tuple(f"{name.partition('.')[0]}." for name in ([head] if isinstance(head, str) else head))
    # Without its classes a built-in model also loses layers before them, and its page is timm's own.
    built_in = spec is None and asked.file is None and not asked.name.startswith("hf-hub:")
    for report in reports:
        left = [] if built_in else [key for key in report.unexpected if not key.startswith(heads)]
        name = spec.name if spec else module.pretrained_cfg["architecture"]
        refuse_unfit(report.missing, left, name=name, where=where, fix=fix)
    if shapes is not None:
        refuse_other_patches(module, shapes, where=where, fix=fix)
    if spec is not None:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            wanted = build_named(spec)
        refuse_other_structure(module, wanted, name=spec.name, where=where, fix=fix)


def _hint(asked: _Request, spec: ModelSpec | None, named: Mapping[str, ModelSpec]) -> str:
    """What else may be wrong: other files under a table's name, or a bare id whose rules the table knows."""
    if spec is not None:
        return f"The files must be those of {spec.page}." if spec.page else ""
    for other in named.values():
        if asked.hub_id is not None and asked.hub_id.split("@")[0].lower() == other.source.lower():
            return f"backbone.name: {other.name} loads it with the arguments that it needs."
    return ""


def _value(key: str, value: Any) -> Any:
    """The class that a table's entry names; only these, and never from a file."""
    from timm.layers import SwiGLUPacked

    classes = {"SwiGLUPacked": SwiGLUPacked, "SiLU": nn.SiLU}
    return classes[value] if key in ("mlp_layer", "act_layer") else value


def _origin(config: BackboneConfig, asked: _Request) -> str:
    if config.name == "embedded":
        return str(EMBEDDED / "backbone")
    return asked.hub_id or config.name


def _check_class_token(module: Any, name: str) -> None:
    has_token = getattr(module, "has_class_token", getattr(module, "num_prefix_tokens", 0) > 0)
    normalised_later = not isinstance(getattr(module, "fc_norm", None), nn.Identity | None)
    if not has_token or normalised_later or not hasattr(module, "global_pool"):
        raise ModelError(
            explain(
                "it has no class token, or normalises its tokens after pooling only",
                where=name,
                fix="write backbone.pooling: default, or choose another backbone",
            )
        )


def _has_plain_head(module: Any, dim: int) -> bool:
    with torch.random.fork_rng(devices=[]):  # the look must not change the heads' start
        module.reset_classifier(2)
        head = module.get_classifier()
        module.reset_classifier(0)
    return isinstance(head, nn.Linear) and head.in_features == dim


def _change_size(module: Any, pixels: int, own: int, name: str) -> dict[str, Any]:
    """Bring a model to another input size by timm's own means, and say so in its `pretrained_cfg`.

    Position embeddings are resampled; a model without them (a convolutional network) stays as it is.

    Returns:
        The argument by which timm builds it at this size.
    """
    resizable = hasattr(module, "set_input_size") and hasattr(module, "patch_embed")
    steps = [int(info["reduction"]) for info in getattr(module, "feature_info", None) or ()]
    step = int(module.patch_embed.feat_ratio()) if resizable else max(steps, default=1)
    check_pixels(pixels, step, name, multiple=resizable)
    if resizable:
        try:
            module.set_input_size(img_size=(pixels, pixels))
        except Exception as error:  # asserts and others, by family
            raise no_such_size(name, pixels, own, error) from error
    # What speaks of the size of its own pictures is left out.
    changes = {"input_size": (3, pixels, pixels), "pool_size": None, "test_input_size": None}
    module.pretrained_cfg = module.default_cfg = {**module.pretrained_cfg, **changes}
    return {"img_size": pixels} if resizable else {}


def _features(module: nn.Module, pixels: int, own: int, name: str) -> Any:
    """What it gives for one tile of this size."""
    try:
        with torch.inference_mode():
            return module(torch.zeros(1, 3, pixels, pixels))
    except Exception as error:
        if pixels == own:
            raise
        raise no_such_size(name, pixels, own, error) from error


def _check_rebuilt(spec: TimmSpec, module: Any, pixels: int, own: int, name: str) -> None:
    """Refuse a model that timm builds otherwise at this size than it resizes it, before it is trained for nothing."""
    example = torch.linspace(-1, 1, 3 * pixels * pixels).view(1, 3, pixels, pixels)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            again = build_timm(spec, 0).eval()
            again.load_state_dict(module.state_dict())
            torch.testing.assert_close(again(example), module(example), rtol=1e-4, atol=1e-4)
    except Exception as error:
        raise no_such_size(name, pixels, own, f"timm builds another model for this size ({error})") from error


def _portable(spec: TimmSpec, module: Any) -> TimmSpec:
    """The same layers by numbers alone, over the timm architecture that has SwiGLU by itself.

    `config.json` cannot hold a class, so that timm could not open what was built with `mlp_layer=SwiGLUPacked`.
    """
    block = module.blocks[0]
    numbers = {
        "img_size": module.patch_embed.img_size[0],
        "patch_size": module.patch_embed.patch_size[0],
        "embed_dim": module.embed_dim,
        "depth": len(module.blocks),
        "num_heads": block.attn.num_heads,
        # half a unit more, because timm cuts the product with embed_dim to a whole number
        "mlp_ratio": (block.mlp.fc1.out_features + 0.5) / module.embed_dim,
        "init_values": spec.model_args.get("init_values", 1e-5),
        "reg_tokens": module.num_reg_tokens,
        "no_embed_class": module.no_embed_class,
        "dynamic_img_size": module.dynamic_img_size,
        "global_pool": module.global_pool,
    }
    return TimmSpec("vit_giant_patch14_dinov2", numbers, spec.pretrained_cfg)


def _check_folder(folder: Path, pretrained: bool) -> None:
    found = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if "architecture" not in found:
        raise ModelError(
            explain(
                "no vision model in this folder: looked for config.json with the key architecture (timm) "
                "or model_type (transformers)",
                where=folder,
                fix="give a folder that timm.models.save_for_hf or transformers' save_pretrained wrote, "
                "or that was downloaded from such a model's page",
            )
        )
    if pretrained and not any((folder / name).is_file() for name in _WEIGHTS):
        raise ModelError(
            explain(
                f"no weights: looked for {', '.join(_WEIGHTS)}", where=folder, fix="copy all files of the model's page"
            )
        )


def _page_arguments(name: str) -> dict[str, Any]:
    """Arguments that the model's own page or folder adds to its architecture; the classes are ours to set."""
    from timm.models import load_model_config_from_hf

    if name.startswith("local-dir:"):
        found = read_json(Path(name.removeprefix("local-dir:")) / "config.json").get("model_args") or {}
    elif name.startswith("hf-hub:"):
        found = load_model_config_from_hf(name.removeprefix("hf-hub:"))[2] or {}
    else:
        found = {}
    return {key: value for key, value in found.items() if key != "num_classes"}
