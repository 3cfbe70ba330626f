"""Load vision backbones from timm or transformers, by name in clipit's table, Hub id or folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipit.config.run import BackboneConfig
from clipit.errors import ModelError
from clipit.input_files.nearby_files import similar_names
from clipit.models.backbone_specs import BACKBONES
from clipit.models.loading import expected_mpp, public_name, read_model_json, weights_fingerprint
from clipit.models.preprocess import Preprocess
from clipit.models.remote_code import guard_remote_code
from clipit.models.specs import ModelSpec, check_spec
from clipit.models.timm_backbones import load_timm, timm_repository
from clipit.models.transformers_backbones import PREFIX, load_transformers
from clipit.models.trunks import Loader, Pooling, TimmSpec, TokenPool, Trunk, channels_last, inner_model
from clipit.models.weights import check_finite_weights


@dataclass(frozen=True)
class Backbone:
    """A vision model with its preprocessing.

    Attributes:
        module: Module that maps normalised float pixels [b,3,h,w] to pooled features [b,d].
        preprocess: Preprocessing of the model, with `backbone.pixels` as the input size if set.
        expected_mpp: Micrometres per pixel of the tiles that the model was pretrained on; None if unknown.
        fingerprint: Fingerprint of the loaded weights, preprocessing and pooling.
        timm: Arguments for rebuilding the model with timm; None for a transformers model.
        plain_head: Whether timm's classifier is one linear layer over these features, in which case a linear head
            can be exported as a plain timm model.
        pooling: Token pooling applied by clipit; `default` leaves pooling to timm.
        remote_code: Whether the model is defined by Python code from its repository.
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
        """Package that loads the model."""
        return "transformers" if self.timm is None else "timm"

    @property
    def public_name(self) -> str:
        """Name that is valid on other machines: the architecture or the folder's name instead of a local path."""
        name = public_name(self.name)
        return name if name == self.name or self.timm is None else self.timm.architecture


def backbone_repository(config: BackboneConfig) -> str | None:
    """Check the name and path of a backbone, without loading it or contacting the Hub, and return its Hub repository.

    Returns:
        The repository; None if nothing is downloaded, or the loader rejects the model.

    Raises:
        ModelError: The name is unknown, or files are missing.
    """
    config, spec = _resolve(config)
    if (spec.family if spec else _family(config.name)) != "transformers":
        return timm_repository(config, spec, BACKBONES)
    source = spec.source if spec else config.name.removeprefix(PREFIX)
    is_local = config.path is not None or Path(source).expanduser().is_dir()
    return None if is_local else source


def load_backbone(
    config: BackboneConfig, device: torch.device | str = "cpu", *, seed: int = 0, weights: bool = True
) -> Backbone:
    """Load the backbone of a configuration; without `pretrained`, its weights are random and depend only on the seed.

    Args:
        seed: Seed of the random weights: that of the run, so that every command and process has the same backbone.
        weights: Whether to load the weights. False builds only the architecture, on the current default device (`meta`
            takes no memory), with an empty fingerprint.

    Raises:
        ModelError: The name is unknown, files are missing, weights are gated, missing or not finite, the
            features are not one vector per tile, the input size is not supported, or the model differs from its table
            entry.
    """
    config, spec = _resolve(config if weights else config.model_copy(update={"pretrained": False}))
    pooling = config.pooling if config.pooling != "default" or spec is None else spec.pooling
    if weights:
        torch.manual_seed(seed)
    if (spec.family if spec else _family(config.name)) == "transformers":
        with guard_remote_code(config.trust_remote_code, "set backbone.trust_remote_code: true"):
            trunk = load_transformers(config, spec, pooling)
    else:  # timm never runs code from a model's files
        trunk = load_timm(config, spec, pooling, BACKBONES)
    if weights:
        check_finite_weights(dict(trunk.module.named_parameters()), config.path or trunk.source, "copy its files again")
    if spec is not None:
        _check(spec, trunk, pooling, config)
    pooled: tuple[str, ...] = () if trunk.pooling == "default" else (trunk.pooling,)
    if isinstance(trunk.module, TokenPool) and trunk.module.normalise:
        pooled += ("post_layernorm",)
    return Backbone(
        name=config.name,
        module=channels_last(trunk.module.to(device) if weights else trunk.module),
        preprocess=trunk.preprocess,
        dim=trunk.dim,
        expected_mpp=spec.expected_mpp if spec else expected_mpp(trunk.source),
        fingerprint=weights_fingerprint(trunk.module, trunk.preprocess.hash, *pooled) if weights else "",
        timm=trunk.timm,
        plain_head=trunk.plain_head,
        pooling=trunk.pooling,
        remote_code=trunk.remote_code,
    )


def _resolve(config: BackboneConfig) -> tuple[BackboneConfig, ModelSpec | None]:
    """Remove `hf-hub:` before a local folder; return the configuration and the table entry of the backbone, if any."""
    unprefixed = config.name.removeprefix("hf-hub:")
    if unprefixed != config.name and Path(unprefixed).expanduser().is_dir():  # a folder, despite the prefix
        config = config.model_copy(update={"name": unprefixed})
    spec = BACKBONES.get(config.name)
    if config.path is not None and spec is not None and not Path(config.path).expanduser().exists():
        raise ModelError(
            "backbone.path does not exist",
            where=Path(config.path).expanduser(),
            fix=f"set it to the folder or weights file of {spec.name} ({spec.page}); {similar_names(config.path)}",
        )
    if config.path is not None and spec is None:
        raise ModelError(
            f"backbone.path requires a backbone.name from clipit's table, and {config.name} is not one",
            where="backbone.path",
            fix="set backbone.name to a name from the table, or to the folder itself",
        )
    return config, spec


def _family(name: str) -> Loader:
    """Determine which package loads a model that is not in the table; for a folder, its config.json decides."""
    if name.startswith(PREFIX):
        return "transformers"
    file = Path(name).expanduser() / "config.json"
    if not file.is_file():
        return "timm"
    description = read_model_json(file)
    return "transformers" if "model_type" in description and "architecture" not in description else "timm"


def _check(spec: ModelSpec, trunk: Trunk, pooling: Pooling, config: BackboneConfig) -> None:
    """Check the loaded model against its table entry; `dim` is checked only if the pooling is the entry's."""
    loaded: dict[str, Any] = {"pixels": trunk.native_pixels, "mean": trunk.preprocess.mean, "std": trunk.preprocess.std}
    if pooling == spec.pooling:
        loaded["dim"] = trunk.dim
    for key in spec.loader.get("facts", {}):
        loaded[key] = getattr(inner_model(trunk.module).config, key, None)
    check_spec(spec, loaded, config.path or trunk.source)
