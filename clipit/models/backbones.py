"""The student's vision trunk, from timm."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipit.config import BackboneConfig
from clipit.errors import ModelError, explain
from clipit.models.loading import EMBEDDED, expected_mpp, foreign_errors, read_json, weights_fingerprint
from clipit.models.preprocess import Preprocess, preprocess_from_timm

_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")


@dataclass(frozen=True)
class TimmSpec:
    """What timm needs in order to build the same architecture again, with any number of classes."""

    architecture: str
    model_args: dict[str, Any]
    pretrained_cfg: dict[str, Any]


@dataclass(frozen=True)
class Backbone:
    """A vision trunk and its own rules.

    Attributes:
        name: As configured.
        module: Normalised float [b,3,h,w] to pooled features [b,d].
        preprocess: Its own.
        dim: Number of features d.
        expected_mpp: Micrometres per pixel of its training tiles; None when unknown.
        fingerprint: Over weights (as loaded) and preprocessing.
        timm: How to build it again.
        plain_head: Whether timm puts one linear layer over these very features, so that a linear head can be
            exported as an ordinary timm model.
    """

    name: str
    module: nn.Module
    preprocess: Preprocess
    dim: int
    expected_mpp: float | None
    fingerprint: str
    timm: TimmSpec
    plain_head: bool


def load_backbone(config: BackboneConfig, device: torch.device | str = "cpu") -> Backbone:
    """Load the backbone of a configuration; without `pretrained` its weights come from torch's random generator.

    Raises:
        ModelError: Unknown name, missing files, gated or absent weights, or features that are not one vector per tile.
    """
    import timm
    from timm.data import resolve_data_config

    name, hub_id = _timm_name(config)
    with foreign_errors(config.name, hub_id):
        module: Any = timm.create_model(name, pretrained=config.pretrained, num_classes=0)
    module.eval()
    preprocess = preprocess_from_timm(resolve_data_config({}, pretrained_cfg=module.pretrained_cfg), config.name)
    with torch.inference_mode():
        features = module(torch.zeros(1, 3, preprocess.size, preprocess.size))
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        raise ModelError(
            explain("it does not give one feature vector per tile", where=config.name, fix="choose another backbone")
        )
    spec = TimmSpec(module.pretrained_cfg["architecture"], _model_args(name), dict(module.pretrained_cfg))
    source = str(EMBEDDED / "backbone") if config.name == "embedded" else config.name
    return Backbone(
        name=config.name,
        module=module.to(device),
        preprocess=preprocess,
        dim=features.shape[1],
        expected_mpp=expected_mpp(source),
        fingerprint=weights_fingerprint(module, preprocess.hash),
        timm=spec,
        plain_head=_has_plain_head(module, features.shape[1]),
    )


def build_timm(spec: TimmSpec, num_classes: int) -> Any:
    """The same architecture without weights."""
    import timm

    config = {**spec.pretrained_cfg, "num_classes": num_classes}
    return timm.create_model(
        spec.architecture, pretrained=False, pretrained_cfg=config, num_classes=num_classes, **spec.model_args
    )


def _has_plain_head(module: Any, dim: int) -> bool:
    with torch.random.fork_rng(devices=[]):  # the look must not change the heads' start
        module.reset_classifier(2)
        head = module.get_classifier()
        module.reset_classifier(0)
    return isinstance(head, nn.Linear) and head.in_features == dim


def _timm_name(config: BackboneConfig) -> tuple[str, str | None]:
    """timm's name for it and its repository on the hub."""
    import timm

    name = config.name
    if name.startswith("hf-hub:"):
        return name, name.removeprefix("hf-hub:")
    folder = EMBEDDED / "backbone" if name == "embedded" else Path(name).expanduser()
    if folder.is_dir():
        _check_folder(folder, config.pretrained)
        return f"local-dir:{folder}", None
    architecture = name.partition(".")[0]
    known = timm.list_models()
    if name == "embedded" or architecture not in known:
        near = difflib.get_close_matches(architecture, known, 5, 0.4)
        raise ModelError(
            explain(
                "neither a timm model nor a folder",
                where=folder,
                fix=f"write embedded, a timm name (similar: {', '.join(near) or 'none'}), "
                "hf-hub:ID or a folder in timm's format",
            )
        )
    tags = timm.list_pretrained(f"{architecture}*")
    return name, f"timm/{name}" if name in tags else None


def _check_folder(folder: Path, pretrained: bool) -> None:
    found = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if "architecture" not in found:
        raise ModelError(
            explain(
                "no timm model in this folder: looked for config.json with the key architecture",
                where=folder,
                fix="give a folder that timm.models.save_for_hf wrote, or that was downloaded from a timm page",
            )
        )
    if pretrained and not any((folder / name).is_file() for name in _WEIGHTS):
        raise ModelError(
            explain(
                f"no weights: looked for {', '.join(_WEIGHTS)}", where=folder, fix="copy all files of the model's page"
            )
        )


def _model_args(name: str) -> dict[str, Any]:
    """Arguments that the model's own page or folder adds to its architecture; the classes are ours to set."""
    from timm.models import load_model_config_from_hf

    if name.startswith("local-dir:"):
        found = read_json(Path(name.removeprefix("local-dir:")) / "config.json").get("model_args") or {}
    elif name.startswith("hf-hub:"):
        found = load_model_config_from_hf(name.removeprefix("hf-hub:"))[2] or {}
    else:
        found = {}
    return {key: value for key, value in found.items() if key != "num_classes"}
