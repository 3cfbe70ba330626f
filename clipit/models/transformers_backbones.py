"""Backbones that transformers opens: ViT, DINOv2 with and without registers, and what else gives image tokens."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from clipit.artifacts import write_json
from clipit.config.run import BackboneConfig
from clipit.errors import ModelError, explain, shortlist
from clipit.models.loading import foreign_errors, read_json
from clipit.models.preprocess import Preprocess, preprocess_from_transformers
from clipit.models.specs import ModelSpec
from clipit.models.trunks import Pooling, TokenPool, Trunk, check_pixels, no_such_size
from clipit.models.weights import mismatches

PREFIX = "transformers:"
_PROCESSOR = "preprocessor_config.json"
_RESAMPLE = {"lanczos": 1, "bilinear": 2, "bicubic": 3}  # PIL's numbers
_UNUSED = ("pooler.", "mask_token")  # weights that the features do not depend on


def load_transformers(config: BackboneConfig, spec: ModelSpec | None, pooling: Pooling) -> Trunk:
    """Load a transformers vision model; without `pretrained` its weights come from torch's random generator.

    Args:
        config: The configuration.
        spec: The table's entry, when a name of the table was given.
        pooling: `default` and `cls`: the class token; `cls_mean`: with the mean of the patches.

    Raises:
        ModelError: Absent, gated or incomplete files, no vision model, an input size (`config.pixels`) that it does not
            take, or code of its own that is not trusted.
    """
    source = config.path or (spec.source if spec else config.name.removeprefix(PREFIX))
    folder = Path(source).expanduser()
    local = folder.is_dir()
    if config.path is not None and not local:
        raise ModelError(explain("no folder here", where=folder, fix="give the folder with the model's files"))
    hub_id, _, revision = (str(folder), "", "") if local else source.partition("@")
    options: dict[str, Any] = {"revision": revision} if revision else {}
    hint = f"The files must be those of {spec.page}." if spec else ""
    remote = spec is not None and bool(spec.loader.get("remote_code", False))
    _check_trusted(remote, config, source)
    with foreign_errors(config.name, None if local else hub_id, hint, folder if local else None):
        description = _description(hub_id, options)
        remote = remote or _needs_code(description)
        _check_kind(description, source)
        _check_trusted(remote, config, source)
        model = _open(hub_id, config.pretrained, remote, options)
        processor = _processor(hub_id, local, options)
    if processor is not None:
        preprocess = preprocess_from_transformers(processor, source)
    elif spec is not None:
        preprocess = Preprocess(spec.pixels, spec.pixels, "shortest", spec.interpolation, spec.mean, spec.std)
    else:
        raise ModelError(
            explain(
                f"its preprocessing is missing: looked for {_PROCESSOR}",
                where=source,
                fix="copy all files of the model's page into this folder",
            )
        )
    kind: Literal["cls", "cls_mean"] = "cls_mean" if pooling == "cls_mean" else "cls"
    own_pixels, told = preprocess.size, f"its {_PROCESSOR}"
    if config.pixels not in (None, own_pixels):
        _change_size(model, config.pixels, own_pixels, config.name)
        preprocess, told = preprocess.at(config.pixels), "backbone.pixels"
    with foreign_errors(config.name, where=source, hint=f"It is given {preprocess.size} pixels, as {told} says."):
        prefix = _prefix_tokens(model, preprocess.size, source)
        pooled = TokenPool(model, "transformers", prefix, kind)
        with torch.inference_mode():
            dim = pooled(torch.zeros(1, 3, preprocess.size, preprocess.size)).shape[1]
    return Trunk(
        module=pooled, preprocess=preprocess, dim=dim, pooling=kind, source=config.name if local else hub_id,
        own_pixels=own_pixels, remote_code=remote,
    )  # fmt: skip


def save_transformers(model: Any, preprocess: Preprocess, folder: Path) -> None:
    """Write the merged model in transformers' own format, in one file, and its preprocessing."""
    with _quiet():
        model.save_pretrained(folder, max_shard_size="1000GB")
    squash = preprocess.mode == "squash"
    edge = preprocess.resize_to
    write_json(
        folder / _PROCESSOR,
        {
            "image_processor_type": "CLIPImageProcessor",  # the plain steps: resize, crop, rescale, normalise
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
    """The model of an exported folder with its pooling."""
    model = _open(str(folder), True, trust_remote_code, {})
    prefix = _prefix_tokens(model, size, str(folder))
    return TokenPool(model, "transformers", prefix, "cls_mean" if pooling == "cls_mean" else "cls")


@contextmanager
def _quiet() -> Iterator[None]:
    """No bar per loaded file, and no report of weights: `_open` says which of them matter."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _description(source: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of its config.json, without running anything of it."""
    from transformers import PreTrainedConfig

    if Path(source).is_dir():
        return read_json(Path(source) / "config.json")
    found: dict[str, Any] = PreTrainedConfig.get_config_dict(source, **options)[0]
    return found


def _needs_code(description: Mapping[str, Any]) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return "auto_map" in description and description.get("model_type") not in CONFIG_MAPPING_NAMES


def _check_trusted(remote_code: bool, config: BackboneConfig, source: str) -> None:
    if remote_code and not config.trust_remote_code:
        raise ModelError(
            explain(
                "this model is defined by Python code from its own page, which is not trusted yet",
                where=source,
                fix="read that code, then set backbone.trust_remote_code: true",
            )
        )


def _check_kind(found: Mapping[str, Any], source: str) -> None:
    model_type = found.get("model_type")
    if model_type is None:
        raise ModelError(
            explain(
                "no transformers model: config.json has no model_type",
                where=source,
                fix="give a folder that save_pretrained wrote, or the id of a transformers model",
            )
        )
    if "text_config" in found or "vision_config" in found:
        raise ModelError(
            explain(
                f"an image-text model ({model_type}), not a vision backbone",
                where=source,
                fix="name it under vlm.name; a backbone is a vision model alone, such as ViTModel or Dinov2Model",
            )
        )


def _open(source: str, pretrained: bool, remote: bool, options: Mapping[str, Any]) -> Any:
    """The model itself in float32, all of whose used weights were in its files."""
    from transformers import AutoConfig, AutoModel

    if not pretrained:
        config = AutoConfig.from_pretrained(source, trust_remote_code=remote, **options)
        model: Any = AutoModel.from_config(config, trust_remote_code=remote)
    else:
        with _quiet():
            loaded: Any = AutoModel.from_pretrained(
                source, output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32,
                trust_remote_code=remote, **options,
            )  # fmt: skip
        model, report = loaded
        unfit = [
            f"{key} is missing" for key in sorted(report["missing_keys"]) if not any(part in key for part in _UNUSED)
        ]
        unfit += mismatches(report.get("mismatched_keys", ()))
        if unfit:  # transformers would go on with random values
            raise ModelError(
                explain(
                    f"the weights do not fit the model of config.json: {shortlist(unfit)}",
                    where=source,
                    fix="copy all files of one model's page, and of no other, into this folder",
                )
            )
    if getattr(model, "main_input_name", "pixel_values") != "pixel_values":
        raise ModelError(
            explain(
                f"a model of {model.main_input_name}, not of pictures", where=source, fix="give a vision model's folder"
            )
        )
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # a layer over the class token that nobody trained
    return model.eval()


def _change_size(model: Any, pixels: int, own: int, name: str) -> None:
    """Resample the model's position embeddings for another input size, by its own `interpolate_pos_encoding`.

    Once and for all, and written into its configuration, so that an export needs no argument to be opened right.

    Raises:
        ModelError: A size that does not fit its patches, or positions that it cannot resample.
    """
    patch: Any = getattr(model.config, "patch_size", None)
    layer: Any = getattr(model, "embeddings", None)
    known: Any = getattr(layer, "position_embeddings", None)
    patches: Any = getattr(layer, "patch_embeddings", None)
    supported = (
        isinstance(known, nn.Parameter)
        and isinstance(patch, int)
        and isinstance(model.config.image_size, int)
        and hasattr(layer, "interpolate_pos_encoding")
        and hasattr(patches, "num_patches")
    )
    if not supported:
        raise no_such_size(name, pixels, own, "its position embeddings are not of a kind that clipit can resample")
    check_pixels(pixels, patch, name, multiple=True)
    prefix = known.shape[1] - (model.config.image_size // patch) ** 2
    count = (pixels // patch) ** 2
    try:
        with torch.no_grad():
            found = layer.interpolate_pos_encoding(known.new_zeros(1, prefix + count, known.shape[2]), pixels, pixels)
    except Exception as error:
        raise no_such_size(name, pixels, own, error) from error
    layer.position_embeddings = nn.Parameter(found.detach().clone())
    model.config.image_size = pixels
    patches.image_size, patches.num_patches = (pixels, pixels), count
    if hasattr(layer, "image_size"):
        layer.image_size = (pixels, pixels)


def _processor(source: str, local: bool, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """The contents of preprocessor_config.json; None where the model has none."""
    from transformers.utils import cached_file

    if local:
        path = Path(source) / _PROCESSOR
        return read_json(path) if path.is_file() else None
    found = cached_file(
        source, _PROCESSOR, _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False, **options,
    )  # fmt: skip
    return None if found is None else read_json(Path(found))


def _prefix_tokens(model: Any, size: int, source: str) -> int:
    """Tokens before the patches: all that the model gives for an input of this size, less its patches."""
    with torch.inference_mode():
        tokens = getattr(model(pixel_values=torch.zeros(1, 3, size, size)), "last_hidden_state", None)
    patch = getattr(model.config, "patch_size", None)
    prefix = 0
    if isinstance(tokens, torch.Tensor) and tokens.ndim == 3 and isinstance(patch, int):
        prefix = tokens.shape[1] - (size // patch) ** 2
    if prefix < 1:
        raise ModelError(
            explain(
                "it gives no class token before its patches",
                where=source,
                fix="give a ViT with a class token; timm has other kinds of backbones",
            )
        )
    return prefix
