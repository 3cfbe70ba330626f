"""Load backbones with timm, by model name, Hub id, folder in timm's format, or weights file."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from clipit.config.run import BackboneConfig
from clipit.errors import ModelError
from clipit.models.loading import EMBEDDED, errors_only, foreign_errors, read_model_json
from clipit.models.preprocess import preprocess_from_timm
from clipit.models.specs import ModelSpec, similar_models
from clipit.models.trunks import Pooling, TimmSpec, TokenPool, Trunk, check_pixels, unsupported_size
from clipit.models.weights import (
    LoadReport,
    check_all_loaded,
    check_patch_size,
    check_positions,
    check_same_structure,
    load_reports,
    tensor_shapes,
)

_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
_NOT_ARGUMENTS = ("architecture", "data")  # keys of a spec's loader that are not passed to timm.create_model


@dataclass(frozen=True)
class _Request:
    """Arguments of a call to timm: model name, model arguments, `pretrained_cfg` overrides, local weights file."""

    name: str
    hub_id: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None


def load_timm(
    config: BackboneConfig, spec: ModelSpec | None, pooling: Pooling, table: Mapping[str, ModelSpec]
) -> Trunk:
    """Load a timm model; without `pretrained`, its weights are random.

    Args:
        spec: Table entry of the backbone, if it has one.
        table: Table of backbones, used to suggest similar names in errors.

    Raises:
        ModelError: The name is unknown, files are missing, weights are gated or missing, the features are not one
            vector per tile, or the input size (`config.pixels`) is not supported.
    """
    import timm
    from timm.data import resolve_data_config

    request = _request_of_spec(config, spec) if spec else _request_of_name(config, table)
    uses_hub = config.pretrained and request.file is None
    origin = request.file or request.hub_id or request.name
    with foreign_errors(config.name, request.hub_id, _hint(request, spec, table), request.file, uses_hub=uses_hub):
        shapes = tensor_shapes(request.file) if request.file and config.pretrained else None
        with load_reports(origin) as reports, errors_only("timm"):  # those that matter raise errors below
            module: Any = timm.create_model(
                request.name,
                pretrained=config.pretrained,
                num_classes=0,
                pretrained_cfg_overlay=request.data or None,
                **{key: _value(key, value) for key, value in request.arguments.items()},
            )
        page_arguments = _page_arguments(request.name)
    module.eval()
    if config.pretrained:
        _check_weights(module, [report for report in reports if report.module is module], request, spec, shapes)
    preprocess = preprocess_from_timm(resolve_data_config({}, pretrained_cfg=module.pretrained_cfg), config.name)
    arguments = {**page_arguments, **request.arguments}
    native_pixels = preprocess.size
    if config.pixels not in (None, native_pixels):
        arguments |= _change_size(module, config.pixels, native_pixels, config.name)
        preprocess = preprocess_from_timm(resolve_data_config({}, pretrained_cfg=module.pretrained_cfg), config.name)
    pooled: nn.Module = module
    if pooling != "default":
        _check_class_token(module, config.name)
        if pooling == "cls" and module.global_pool in ("", "token"):
            module.reset_classifier(0, "token")  # pooling by timm, so that the export is a plain timm model
            arguments["global_pool"] = "token"
        else:
            pooled = TokenPool(module, "timm", module.num_prefix_tokens, pooling)
    features = _features(pooled, preprocess.size, native_pixels, config.name)
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        raise ModelError(
            "the model does not return one feature vector per tile",
            where=config.name,
            fix="set backbone.pooling: cls or cls_mean, or choose a different backbone",
        )
    rebuilt = TimmSpec(module.pretrained_cfg["architecture"], arguments, dict(module.pretrained_cfg))
    rebuilt = _portable(rebuilt, module) if "mlp_layer" in arguments else rebuilt
    if preprocess.size != native_pixels:
        _check_rebuilt(rebuilt, module, preprocess.size, native_pixels, config.name)
    return Trunk(
        module=pooled,
        preprocess=preprocess,
        dim=features.shape[1],
        pooling=pooling if isinstance(pooled, TokenPool) else "default",
        source=_origin(config, request),
        native_pixels=native_pixels,
        timm=rebuilt,
        plain_head=pooled is module and _has_plain_head(module, features.shape[1]),
    )


def timm_repository(config: BackboneConfig, spec: ModelSpec | None, table: Mapping[str, ModelSpec]) -> str | None:
    """Check the name and path of a timm backbone without loading it, and return the Hub repository of its weights.

    The arguments are those of `load_timm`.

    Returns:
        The repository; None for local weights, and for weights that timm does not publish on the Hub.

    Raises:
        ModelError: The name is unknown, or files are missing.
    """
    import timm

    request = _request_of_spec(config, spec) if spec else _request_of_name(config, table)
    if request.hub_id is None and request.name in timm.list_models():  # a name without the tag of its weights
        return timm.get_pretrained_cfg(request.name).hf_hub_id or None
    return request.hub_id


def build_timm(spec: TimmSpec, num_classes: int) -> Any:
    """Build a timm model from its specification, with random weights."""
    import timm

    config = {**spec.pretrained_cfg, "num_classes": num_classes}
    return timm.create_model(
        spec.architecture, pretrained=False, pretrained_cfg=config, num_classes=num_classes, **spec.model_args
    )


def build_named(spec: ModelSpec) -> Any:
    """Build the timm model of a table entry with random weights, without network access."""
    import timm

    request = _request_of_spec(BackboneConfig(name=spec.name, pretrained=False), spec)
    arguments = {key: _value(key, value) for key, value in request.arguments.items()}
    return timm.create_model(
        request.name, pretrained=False, num_classes=0, pretrained_cfg_overlay=request.data or None, **arguments
    )


def open_timm(folder: Path, pooling: Literal["default", "cls", "cls_mean"]) -> nn.Module:
    """Load the model of an exported folder, with clipit's token pooling unless `pooling` is `default`."""
    import timm

    with load_reports(folder, strict=True):
        module: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return module if pooling == "default" else TokenPool(module, "timm", module.num_prefix_tokens, pooling)


def _request_of_spec(config: BackboneConfig, spec: ModelSpec) -> _Request:
    """Build the request for a table entry, with weights from the Hub, a folder or a weights file, or random weights."""
    arguments = {key: value for key, value in spec.loader.items() if key not in _NOT_ARGUMENTS}
    data = dict(spec.loader.get("data", {}))
    on_hub = "/" in spec.source
    architecture = spec.loader["architecture"] if on_hub else spec.source
    if on_hub:  # for weights that come without the config.json of the model's page
        size = (3, spec.pixels, spec.pixels)
        normalisation = {"mean": spec.mean, "std": spec.std, "interpolation": spec.interpolation}
        standalone: dict[str, Any] = {"input_size": size, "crop_pct": 1.0, **normalisation, **data}
    else:
        standalone = data
    if not config.pretrained:
        return _Request(architecture, None, arguments, standalone)
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
            f"no weights for {spec.name}: looked for {', '.join(_WEIGHTS)}",
            where=path,
            fix=f"download them from {spec.page}, and use their folder or a single weights file",
        )
    return _Request(architecture, None, arguments, {**standalone, "file": str(files[0])}, files[0])


def _request_of_name(config: BackboneConfig, table: Mapping[str, ModelSpec]) -> _Request:
    name = config.name
    if name.startswith("hf-hub:"):
        return _Request(name, name.removeprefix("hf-hub:"))
    folder = EMBEDDED / "backbone" if name == "embedded" else Path(name).expanduser()
    if folder.is_dir():
        _check_folder(folder, config.pretrained)
        return _Request(f"local-dir:{folder}", file=_weights(folder))
    import timm

    architecture = name.partition(".")[0]
    known = timm.list_models()
    if name == "embedded" or architecture not in known:
        similar = [*similar_models(name, table), *difflib.get_close_matches(architecture, known, 5, 0.6)]
        raise ModelError(
            "unknown backbone: not in clipit's table, not a timm model, and not a folder",
            where=folder if name == "embedded" else name,
            fix=f"use embedded, a name from the table or from timm (similar: {', '.join(similar) or 'none'}), "
            "hf-hub:ID, transformers:ID, or a folder in timm or transformers format",
        )
    tags = timm.list_pretrained(f"{architecture}*")
    return _Request(name, f"timm/{name}" if name in tags else None)


def _weights(folder: Path) -> Path | None:
    """Return the weights file that timm loads from a folder."""
    return next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)


def _check_weights(
    module: Any,
    reports: list[LoadReport],
    request: _Request,
    spec: ModelSpec | None,
    shapes: Mapping[str, tuple[int, ...]] | None,
) -> None:
    """Check that only classifier weights are missing or unused, and that the architecture matches the table entry."""
    where = request.file or request.hub_id or request.name
    page = spec.page if spec and spec.page else f"https://huggingface.co/{request.hub_id}" if request.hub_id else ""
    fix = f"use the files from {page}" if page else "use weights and config.json from the same model"
    if spec is not None:
        fix += "; for a different model, set backbone.name to its folder"
    head = module.pretrained_cfg.get("classifier") or "head"
    heads = tuple(f"{name.partition('.')[0]}." for name in ([head] if isinstance(head, str) else head))
    # With num_classes=0, built-in models also drop layers before the classifier; their weights are published by timm.
    built_in = spec is None and request.file is None and not request.name.startswith("hf-hub:")
    for report in reports:
        unused = [] if built_in else [key for key in report.unexpected if not key.startswith(heads)]
        name = spec.name if spec else module.pretrained_cfg["architecture"]
        check_all_loaded(report.missing, unused, name=name, where=where, fix=fix)
    if shapes is not None:
        check_patch_size(module, shapes, where=where, fix=fix)
        if spec is None:  # table entries may state another input size on purpose
            check_positions(module, shapes, where)
    if spec is not None:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            reference = build_named(spec)
        check_same_structure(module, reference, name=spec.name, where=where, fix=fix)


def _hint(request: _Request, spec: ModelSpec | None, table: Mapping[str, ModelSpec]) -> str:
    """Suggest another possible cause of an error: wrong files, or a Hub id that has a name in the table."""
    if spec is not None:
        return f"Use the files from {spec.page}." if spec.page else ""
    for other in table.values():
        if request.hub_id is not None and request.hub_id.split("@")[0].lower() == other.source.lower():
            return f"backbone.name={other.name} loads this model with the required arguments."
    return ""


def _value(key: str, value: Any) -> Any:
    """Resolve the name of a layer class; only table entries name classes, and only the two below."""
    from timm.layers import SwiGLUPacked

    classes = {"SwiGLUPacked": SwiGLUPacked, "SiLU": nn.SiLU}
    return classes[value] if key in ("mlp_layer", "act_layer") else value


def _origin(config: BackboneConfig, request: _Request) -> str:
    if config.name == "embedded":
        return str(EMBEDDED / "backbone")
    return request.hub_id or config.name


def _check_class_token(module: Any, name: str) -> None:
    has_token = getattr(module, "has_class_token", getattr(module, "num_prefix_tokens", 0) > 0)
    normalised_later = not isinstance(getattr(module, "fc_norm", None), nn.Identity | None)
    if not has_token or normalised_later or not hasattr(module, "global_pool"):
        raise ModelError(
            "the model has no class token, or normalises its tokens only after pooling",
            where=name,
            fix="set backbone.pooling: default, or choose a different backbone",
        )


def _has_plain_head(module: Any, dim: int) -> bool:
    with torch.random.fork_rng(devices=[]):  # so that the student's heads are initialised as without this check
        module.reset_classifier(2)
        head = module.get_classifier()
        module.reset_classifier(0)
    return isinstance(head, nn.Linear) and head.in_features == dim


def _change_size(module: Any, pixels: int, native_pixels: int, name: str) -> dict[str, Any]:
    """Change the input size of a model with timm's `set_input_size`, and record it in its `pretrained_cfg`.

    Position embeddings are resampled; models without them (convolutional networks) are not changed.

    Returns:
        Arguments for building the model at this size with timm.
    """
    resizable = hasattr(module, "set_input_size") and hasattr(module, "patch_embed")
    steps = [int(info["reduction"]) for info in getattr(module, "feature_info", None) or ()]
    step = int(module.patch_embed.feat_ratio()) if resizable else max(steps, default=1)
    check_pixels(pixels, step, name, multiple=resizable)
    if resizable:
        try:
            module.set_input_size(img_size=(pixels, pixels))
        except Exception as error:  # model families raise different exceptions
            raise unsupported_size(name, pixels, native_pixels, error) from error
    changes = {"input_size": (3, pixels, pixels), "pool_size": None, "test_input_size": None}
    module.pretrained_cfg = module.default_cfg = {**module.pretrained_cfg, **changes}
    return {"img_size": pixels} if resizable else {}


def _features(module: nn.Module, pixels: int, native_pixels: int, name: str) -> Any:
    try:
        with torch.inference_mode():
            return module(torch.zeros(1, 3, pixels, pixels))
    except Exception as error:
        if pixels == native_pixels:
            raise
        raise unsupported_size(name, pixels, native_pixels, error) from error


def _check_rebuilt(spec: TimmSpec, module: Any, pixels: int, native_pixels: int, name: str) -> None:
    """Check that timm can rebuild the resized model, so that an export does not fail after training."""
    example = torch.linspace(-1, 1, 3 * pixels * pixels).view(1, 3, pixels, pixels)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            rebuilt = build_timm(spec, 0).eval()
            rebuilt.load_state_dict(module.state_dict())
            torch.testing.assert_close(rebuilt(example), module(example), rtol=1e-4, atol=1e-4)
    except Exception as error:
        reason = f"timm builds a different model for this size ({error})"
        raise unsupported_size(name, pixels, native_pixels, reason) from error


def _portable(spec: TimmSpec, module: Any) -> TimmSpec:
    """Describe a SwiGLU model with numeric arguments of a timm architecture that has SwiGLU by default.

    `config.json` cannot contain a class such as `mlp_layer=SwiGLUPacked`.
    """
    block = module.blocks[0]
    numbers = {
        "img_size": module.patch_embed.img_size[0],
        "patch_size": module.patch_embed.patch_size[0],
        "embed_dim": module.embed_dim,
        "depth": len(module.blocks),
        "num_heads": block.attn.num_heads,
        # plus half a unit, because timm truncates the product with embed_dim
        "mlp_ratio": (block.mlp.fc1.out_features + 0.5) / module.embed_dim,
        "init_values": spec.model_args.get("init_values", 1e-5),
        "reg_tokens": module.num_reg_tokens,
        "no_embed_class": module.no_embed_class,
        "dynamic_img_size": module.dynamic_img_size,
        "global_pool": module.global_pool,
    }
    return TimmSpec("vit_giant_patch14_dinov2", numbers, spec.pretrained_cfg)


def _check_folder(folder: Path, pretrained: bool) -> None:
    description = read_model_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if "architecture" not in description:
        raise ModelError(
            "no vision model in this folder: no config.json with the key architecture (timm) "
            "or model_type (transformers)",
            where=folder,
            fix="use a folder written by timm.models.save_for_hf or by transformers' save_pretrained, "
            "or downloaded from the page of such a model",
        )
    if pretrained and not any((folder / name).is_file() for name in _WEIGHTS):
        raise ModelError(
            f"no weights: looked for {', '.join(_WEIGHTS)}",
            where=folder,
            fix="copy all files from the model's page",
        )


def _page_arguments(name: str) -> dict[str, Any]:
    """Read the model arguments in the config.json of a Hub page or folder, except the number of classes."""
    from timm.models import load_model_config_from_hf

    if name.startswith("local-dir:"):
        arguments = read_model_json(Path(name.removeprefix("local-dir:")) / "config.json").get("model_args") or {}
    elif name.startswith("hf-hub:"):
        arguments = load_model_config_from_hf(name.removeprefix("hf-hub:"))[2] or {}
    else:
        arguments = {}
    return {key: value for key, value in arguments.items() if key != "num_classes"}
