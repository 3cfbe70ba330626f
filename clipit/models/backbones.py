"""The student's vision trunk, from timm or transformers: by a name of the table, an id or a folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipit.config.run import BackboneConfig
from clipit.errors import ModelError, explain
from clipit.models.backbone_specs import BACKBONES
from clipit.models.loading import expected_mpp, read_json, weights_fingerprint
from clipit.models.preprocess import Preprocess
from clipit.models.specs import ModelSpec, check_spec
from clipit.models.timm_backbones import load_timm
from clipit.models.transformers_backbones import PREFIX, load_transformers
from clipit.models.trunks import Loader, Pooling, TimmSpec, Trunk, channels_last, inner_model


@dataclass(frozen=True)
class Backbone:
    """A vision trunk and its own rules.

    Attributes:
        name: As configured.
        module: Normalised float [b,3,h,w] to pooled features [b,d].
        preprocess: Its own, at `backbone.pixels` where that is given.
        dim: Number of features d.
        expected_mpp: Micrometres per pixel of its training tiles, whatever size it is given here; None when unknown.
        fingerprint: Over weights (as loaded), preprocessing and pooling.
        timm: How timm builds it again; None: transformers does.
        plain_head: Whether timm puts one linear layer over these very features, so that a linear head can be
            exported as an ordinary timm model.
        pooling: Ours over the package's tokens; `default`: the package's own.
        remote_code: Whether code from its own page defines it.
    """

    name: str
    module: nn.Module
    preprocess: Preprocess
    dim: int
    expected_mpp: float | None
    fingerprint: str
    timm: TimmSpec | None
    plain_head: bool
    pooling: Pooling = "default"
    remote_code: bool = False

    @property
    def loader(self) -> Loader:
        """The package that opens it."""
        return "transformers" if self.timm is None else "timm"

    @property
    def public_name(self) -> str:
        """A name that means something on another machine: no path, but the architecture."""
        if self.name in BACKBONES or self.name.startswith(("hf-hub:", PREFIX)) or "/" not in self.name:
            return self.name
        return self.timm.architecture if self.timm else Path(self.name).name


def load_backbone(config: BackboneConfig, device: torch.device | str = "cpu") -> Backbone:
    """Load the backbone of a configuration; without `pretrained` its weights come from torch's random generator.

    Raises:
        ModelError: Unknown name, missing files, gated or absent weights, features that are not one vector per tile,
            an input size that it does not take, or a model that is not what the table says under its name.
    """
    inner = config.name.removeprefix("hf-hub:")
    if inner != config.name and Path(inner).expanduser().is_dir():  # a folder is meant, whatever stands before it
        config = config.model_copy(update={"name": inner})
    spec = BACKBONES.get(config.name)
    if config.path is not None and spec is not None and not Path(config.path).expanduser().exists():
        raise ModelError(
            explain(
                "backbone.path does not exist",
                where=Path(config.path).expanduser(),
                fix=f"give the folder or file of {spec.name} ({spec.page})",
            )
        )
    if config.path is not None and spec is None:
        raise ModelError(
            explain(
                f"{config.name} is no name of clipit's table, so backbone.path has no rules to go with it",
                where="backbone.path",
                fix="write a name of the table, or the folder itself as backbone.name",
            )
        )
    pooling = config.pooling if config.pooling != "default" or spec is None else spec.pooling
    if (spec.family if spec else _family(config.name)) == "transformers":
        trunk = load_transformers(config, spec, pooling)
    else:
        trunk = load_timm(config, spec, pooling, BACKBONES)
    if spec is not None:
        _check(spec, trunk, pooling, config)
    pooled = () if trunk.pooling == "default" else (trunk.pooling,)
    return Backbone(
        name=config.name,
        module=channels_last(trunk.module.to(device)),
        preprocess=trunk.preprocess,
        dim=trunk.dim,
        expected_mpp=spec.expected_mpp if spec else expected_mpp(trunk.source),
        fingerprint=weights_fingerprint(trunk.module, trunk.preprocess.hash, *pooled),
        timm=trunk.timm,
        plain_head=trunk.plain_head,
        pooling=trunk.pooling,
        remote_code=trunk.remote_code,
    )


def _family(name: str) -> Loader:
    """Which package opens what is not in the table; a folder says it in its config.json."""
    if name.startswith(PREFIX):
        return "transformers"
    file = Path(name).expanduser() / "config.json"
    if not file.is_file():
        return "timm"
    found = read_json(file)
    return "transformers" if "model_type" in found and "architecture" not in found else "timm"


def _check(spec: ModelSpec, trunk: Trunk, pooling: Pooling, config: BackboneConfig) -> None:
    """What was loaded is what the table says; with another pooling the number of features is another, too."""
    found: dict[str, Any] = {
        "pixels": trunk.own_pixels,
        "mean": trunk.preprocess.mean,
        "std": trunk.preprocess.std,
    }
    if pooling == spec.pooling:
        found["dim"] = trunk.dim
    for key in spec.loader.get("facts", {}):
        found[key] = getattr(inner_model(trunk.module).config, key, None)
    check_spec(spec, found, config.path or trunk.source)
