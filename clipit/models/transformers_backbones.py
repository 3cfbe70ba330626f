"""Load backbones with transformers: ViT, DINOv2 with and without registers, and others that return image tokens."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clipit.config.run import BackboneConfig
from clipit.errors import ModelError, shortlist
from clipit.models.loading import (
    IMAGE_PROCESSOR_FILES,
    foreign_errors,
    load_pretrained,
    quiet_transformers,
    read_image_processor,
    read_model_json,
)
from clipit.models.preprocess import Preprocess, preprocess_from_transformers
from clipit.models.specs import ModelSpec
from clipit.models.trunks import Pooling, TokenPool, Trunk, check_pixels, unsupported_size
from clipit.models.weights import mismatches, unused_layers
from clipit.output_files.artifacts import write_json

PREFIX = "transformers:"
PROCESSOR = "preprocessor_config.json"
_MODEL_TYPE = "open with clipit.load_classifier"
"""Model type written to config.json if transformers has no class for the exported model's head.

With the backbone's type, the image-classification pipeline would load the folder with a randomly initialised head; for
an unknown type, it raises an error that names the type.
"""
_BACKBONE = "backbone_config"  # key of the backbone's configuration in such an export
_EQUIVALENT = {"hibou": "dinov2_with_registers"}
"""Model types whose code on the Hub is equivalent to a built-in transformers model, which is loaded instead."""
_RESAMPLE = {"lanczos": 1, "bilinear": 2, "bicubic": 3}  # PIL's numbers
_UNUSED = ("pooler.", "mask_token")  # weights that do not affect the features


def load_transformers(config: BackboneConfig, spec: ModelSpec | None, pooling: Pooling) -> Trunk:
    """Load a transformers vision model; without `pretrained`, its weights are random.

    Args:
        spec: Table entry of the backbone, if it has one.
        pooling: `default` or `cls` for the class token, `cls_mean` to add the mean of the patch tokens.

    Raises:
        ModelError: Files are missing, gated or incomplete, the model is not a vision model, the input size
            (`config.pixels`) is not supported, or remote code is not trusted.
    """
    source = config.path or (spec.source if spec else config.name.removeprefix(PREFIX))
    folder = Path(source).expanduser()
    local = folder.is_dir()
    if config.path is not None and not local:
        raise ModelError(
            "backbone.path is not a folder", where=folder, fix="set it to the folder with the model's files"
        )
    hub_id, _, revision = (str(folder), "", "") if local else source.partition("@")
    options: dict[str, Any] = {"revision": revision} if revision else {}
    hint = f"Use the files from {spec.page}." if spec else ""
    with foreign_errors(config.name, None if local else hub_id, hint, folder if local else None):
        description = _description(hub_id, options)
        remote = _needs_code(description)
        _check_kind(description, source)
        _check_trusted(remote, config, source)
        model = _open(hub_id, description, config.pretrained, remote, options)
        processor = _processor(hub_id, local, options)
    if processor is not None:
        preprocess = preprocess_from_transformers(processor, source)
    elif spec is not None:
        preprocess = Preprocess(spec.pixels, spec.pixels, "shortest", spec.interpolation, spec.mean, spec.std)
    else:
        raise ModelError(
            f"the model's preprocessing is missing: looked for {' and '.join(IMAGE_PROCESSOR_FILES)}",
            where=source,
            fix="copy all files from the model's page into this folder",
        )
    kind: Literal["cls", "cls_mean"] = "cls_mean" if pooling == "cls_mean" else "cls"
    native_pixels, origin = preprocess.size, "its image processor"
    if config.pixels not in (None, native_pixels):
        _change_size(model, config.pixels, native_pixels, config.name)
        preprocess, origin = preprocess.at(config.pixels), "backbone.pixels"
    with foreign_errors(config.name, where=source, hint=f"Its input size is {preprocess.size}, from {origin}."):
        pooled = _pooled(model, preprocess.size, kind, source)
        with torch.inference_mode():
            dim = pooled(torch.zeros(1, 3, preprocess.size, preprocess.size)).shape[1]
    return Trunk(
        module=pooled, preprocess=preprocess, dim=dim, pooling=kind, source=config.name if local else hub_id,
        native_pixels=native_pixels, remote_code=remote,
    )  # fmt: skip


def save_transformers(model: Any, preprocess: Preprocess, folder: Path, *, opens: bool) -> None:
    """Write a model in transformers' format with unsharded weights, and its preprocessing.

    Args:
        opens: Whether the model is an image classifier. The configuration of a backbone without a head is written so
            that transformers does not load the folder as a classifier with a randomly initialised head.
    """
    with quiet_transformers():
        model.save_pretrained(folder, max_shard_size="1000GB")
    if not opens:
        description = dict(read_model_json(folder / "config.json"))
        if _is_own(model):
            description = {"model_type": _MODEL_TYPE, _BACKBONE: description}
        else:  # transformers loads this type only with the model's own code, which may define a classifier
            description.get("auto_map", {}).pop("AutoModelForImageClassification", None)
        write_json(folder / "config.json", description)
    squash = preprocess.mode == "squash"
    edge = preprocess.resize_to
    write_json(
        folder / PROCESSOR,
        {
            "image_processor_type": "CLIPImageProcessor",  # resize, crop, rescale, normalise
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": edge, "width": edge} if squash else {"shortest_edge": edge},
            "resample": _RESAMPLE[preprocess.interpolation],
            "do_center_crop": True,
            "crop_size": {"height": preprocess.size, "width": preprocess.size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": preprocess.mean,
            "image_std": preprocess.std,
        },
    )


def open_transformers(folder: Path, pooling: Pooling, size: int, *, trust_remote_code: bool) -> nn.Module:
    """Load the model of an exported folder with its pooling."""
    model = _open(str(folder), _description(str(folder), {}), True, trust_remote_code, {})
    return _pooled(model, size, "cls_mean" if pooling == "cls_mean" else "cls", str(folder))


def classification_model(
    pooled: TokenPool, linear: tuple[Tensor, Tensor], classes: Sequence[str], size: int
) -> nn.Module | None:
    """Build transformers' own image classifier on a backbone, for the image-classification pipeline.

    Args:
        pooled: Backbone with clipit's pooling.
        linear: Weight and bias of the head, over the pooled features.
        classes: Class names, in the order of the logits.
        size: Edge length of the input in pixels.

    Returns:
        The classifier; None if transformers has none that gives the same logits.
    """
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    model, (weight, bias) = pooled.trunk, linear
    known = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(model.config), None)
    if known is None or not _is_own(model):
        return None
    config = copy.deepcopy(model.config)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: number for number, name in enumerate(classes)}
    with torch.random.fork_rng(devices=[]):  # so that the export does not change later random numbers
        classifier: Any = (known[0] if isinstance(known, tuple) else known)(config).eval()
    head = getattr(classifier, "classifier", None)
    reads_pooler = getattr(classifier.base_model, "pooler", None) is not None  # clipit does not use the pooler
    if reads_pooler or type(classifier.base_model) is not type(model) or not isinstance(head, nn.Linear):
        return None
    setattr(classifier, classifier.base_model_prefix, model)
    extra = head.in_features - weight.shape[1]
    if extra < 0:
        return None
    example = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
    with torch.no_grad():
        # Zero weights for the mean of the patch tokens, which DINOv2's classifiers also read
        head.weight.copy_(torch.nn.functional.pad(weight, (0, extra)))
        head.bias.copy_(bias)
        same = torch.allclose(
            classifier(pixel_values=example).logits, pooled(example) @ weight.T + bias, rtol=1e-4, atol=1e-4
        )
    return classifier if same else None


def _description(source: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Read the backbone's configuration from config.json, without running any of its code."""
    from transformers import PreTrainedConfig

    description: dict[str, Any]
    if Path(source).is_dir():
        description = read_model_json(Path(source) / "config.json")
    else:
        description = PreTrainedConfig.get_config_dict(source, **options)[0]
    return description[_BACKBONE] if description.get("model_type") == _MODEL_TYPE else description


def _is_own(model: Any) -> bool:
    """Return whether a model's class is part of transformers, not of code from the model's files."""
    return type(model).__module__.partition(".")[0] == "transformers"


def _needs_code(description: Mapping[str, Any]) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    known = {*CONFIG_MAPPING_NAMES, *_EQUIVALENT}
    return "auto_map" in description and description.get("model_type") not in known


def _check_trusted(remote_code: bool, config: BackboneConfig, source: str) -> None:
    if remote_code and not config.trust_remote_code:
        raise ModelError(
            "this model is defined by Python code from its own files, which is not trusted yet",
            where=source,
            fix="read that code, then set backbone.trust_remote_code: true",
        )


def _check_kind(description: Mapping[str, Any], source: str) -> None:
    model_type = description.get("model_type")
    if model_type is None:
        raise ModelError(
            "not a transformers model: config.json has no model_type",
            where=source,
            fix="use a folder written by save_pretrained, or the id of a transformers model",
        )
    if "text_config" in description or "vision_config" in description:
        raise ModelError(
            f"an image-text model ({model_type}), not a vision backbone",
            where=source,
            fix="use it as vlm.name; a backbone must be a vision-only model, such as ViTModel or Dinov2Model",
        )


def _open(
    source: str, description: Mapping[str, Any], pretrained: bool, remote: bool, options: Mapping[str, Any]
) -> Any:
    """Load the model in float32, and check that its files contain all weights that it uses."""
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

    model_type = description["model_type"]
    config = None
    if model_type in _EQUIVALENT:
        config = _equivalent_config(description, source)
    elif model_type in CONFIG_MAPPING:
        config = CONFIG_MAPPING[model_type].from_dict(dict(description))
    if not pretrained:
        config = config or AutoConfig.from_pretrained(source, trust_remote_code=remote, **options)
        model: Any = AutoModel.from_config(config, trust_remote_code=remote)
    else:
        model, report = load_pretrained(AutoModel, source, config=config, trust_remote_code=remote, **options)
        mismatched = [
            f"{key} is missing" for key in sorted(report["missing_keys"]) if not any(part in key for part in _UNUSED)
        ]
        mismatched += mismatches(report.get("mismatched_keys", ()))
        unexpected = report["unexpected_keys"]
        unused = sorted(unexpected) if model_type in _EQUIVALENT else unused_layers(model, unexpected)
        mismatched += [f"{key} is not in the model" for key in unused]
        if mismatched:  # transformers would keep random values
            raise ModelError(
                f"the weights do not match the model in config.json: {shortlist(mismatched)}",
                where=source,
                fix="copy all files from the page of a single model into this folder",
            )
    if getattr(model, "main_input_name", "pixel_values") != "pixel_values":
        raise ModelError(
            f"the model's input is {model.main_input_name}, not images", where=source, fix="use a vision model's folder"
        )
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # an untrained layer over the class token
    return model.eval()


def _equivalent_config(description: Mapping[str, Any], source: str) -> Any:
    """Build the configuration of the model in `_EQUIVALENT`; most of its keys can be checked against the weights.

    Raises:
        ModelError: The number of attention heads, which does not affect the shape of any weight, is missing.
    """
    from transformers import CONFIG_MAPPING

    if "num_attention_heads" not in description:
        raise ModelError(
            "num_attention_heads is missing in config.json", where=source, fix="copy this file from the model's page"
        )
    kept = {key: value for key, value in description.items() if key not in ("model_type", "auto_map")}
    return CONFIG_MAPPING[_EQUIVALENT[description["model_type"]]].from_dict(kept)


def _change_size(model: Any, pixels: int, native_pixels: int, name: str) -> None:
    """Resample the model's position embeddings for another input size, with the model's `interpolate_pos_encoding`.

    Rotary position embeddings need no resampling. The new size is also written to the model's configuration, so that an
    export loads without further arguments.

    Raises:
        ModelError: The size does not match the patches, or the position embeddings cannot be resampled.
    """
    patch: Any = getattr(model.config, "patch_size", None)
    if isinstance(patch, int) and _has_rotary_positions(model):  # computed for any size in each forward pass
        check_pixels(pixels, patch, name, multiple=True)
        model.config.image_size = pixels
        return
    layer: Any = getattr(model, "embeddings", None)
    positions: Any = getattr(layer, "position_embeddings", None)
    patches: Any = getattr(layer, "patch_embeddings", None)
    supported = (
        isinstance(positions, nn.Parameter)
        and isinstance(patch, int)
        and isinstance(model.config.image_size, int)
        and hasattr(layer, "interpolate_pos_encoding")
        and hasattr(patches, "num_patches")
        # Hibou's code reads these keys; with other values, it would resample differently from transformers' model
        and not getattr(model.config, "interpolate_offset", 0)
        and getattr(model.config, "interpolate_antialias", True)
    )
    if not supported:
        raise unsupported_size(
            name, pixels, native_pixels, "its position embeddings are of a kind that clipit cannot resample"
        )
    check_pixels(pixels, patch, name, multiple=True)
    prefix = positions.shape[1] - (model.config.image_size // patch) ** 2
    count = (pixels // patch) ** 2
    try:
        with torch.no_grad():
            zeros = positions.new_zeros(1, prefix + count, positions.shape[2])
            resampled = layer.interpolate_pos_encoding(zeros, pixels, pixels)
    except Exception as error:
        raise unsupported_size(name, pixels, native_pixels, error) from error
    layer.position_embeddings = nn.Parameter(resampled.detach().clone())
    model.config.image_size = pixels
    patches.image_size, patches.num_patches = (pixels, pixels), count
    if hasattr(layer, "image_size"):
        layer.image_size = (pixels, pixels)


def _has_rotary_positions(model: Any) -> bool:
    """Return whether positions enter only as rotations of queries and keys, as in DINOv3."""
    kinds = [type(part).__name__.lower() for part in model.modules()]
    learned = any("position_embedding" in name for name, _ in model.named_parameters())
    return not learned and any("rope" in kind or "rotary" in kind for kind in kinds)


def _processor(source: str, local: bool, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the configuration of the model's image processor; None if it has none."""
    from transformers.utils import cached_file

    if local:
        return read_image_processor(Path(source))
    files = [
        cached_file(
            source, name, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False, **options,
        )
        for name in IMAGE_PROCESSOR_FILES
    ]  # fmt: skip
    folders = [Path(file).parent for file in files if file is not None]  # all in the folder of this revision
    return read_image_processor(folders[0]) if folders else None


def _pooled(model: Any, size: int, pooling: Literal["cls", "cls_mean"], source: str) -> TokenPool:
    """Wrap a model in token pooling; the tokens before the patch tokens are counted at this input size."""
    with torch.inference_mode():
        output = model(pixel_values=torch.zeros(1, 3, size, size))
    tokens = getattr(output, "last_hidden_state", None)
    patch = getattr(model.config, "patch_size", None)
    prefix = 0
    if isinstance(tokens, torch.Tensor) and tokens.ndim == 3 and isinstance(patch, int):
        prefix = tokens.shape[1] - (size // patch) ** 2
    if prefix < 1 or tokens is None:
        raise ModelError(
            "the model returns no class token before its patch tokens",
            where=source,
            fix="use a ViT with a class token, or load another kind of backbone with timm",
        )
    return TokenPool(model, "transformers", prefix, pooling, normalise=_skips_norm(model, output))


def _skips_norm(model: Any, output: Any) -> bool:
    """Return whether a model normalises its pooled class token but not its tokens, like CLIP's vision models."""
    norm, pooled = getattr(model, "post_layernorm", None), getattr(output, "pooler_output", None)
    if norm is None or pooled is None:
        return False
    first = output.last_hidden_state[:, 0]
    with torch.inference_mode():
        normalised = norm(first)
    return torch.allclose(normalised, pooled, atol=1e-5) and not torch.allclose(first, pooled, atol=1e-5)
