"""Network of a classifier, from normalised pixels to logits and predicted text embeddings."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipit.config.argument_types import type_name
from clipit.config.run import StudentConfig
from clipit.errors import DataError, ModelError
from clipit.models.classifier_spec import ClassifierSpec
from clipit.models.student import Student


class ClassifierNetwork(nn.Module):
    """Backbone and classification head of a classifier, and its projector if it was trained with text.

    Attributes:
        backbone: Backbone, including timm's classifier head if the classifier is a plain timm model.
        heads: Student heads on an identity backbone; None for a plain timm model.
        projector: Layers from features to the VLM's joint space; None if trained without text.
    """

    def __init__(
        self, spec: ClassifierSpec, backbone: Any, heads: Mapping[str, Tensor], zero_shot: Mapping[str, Tensor]
    ) -> None:
        """Assemble the network.

        Args:
            heads: Tensors of `heads.safetensors`.
            zero_shot: Tensors of `zero_shot.safetensors`.
        """
        super().__init__()
        self.backbone = backbone
        self.heads = None if spec.plain else _heads(spec, heads, zero_shot)
        self.projector = _projector(zero_shot, spec.projector_layers) if spec.projector_layers else None

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b C"], Float[Tensor, "b D"] | None]:
        """Map normalised pixels to logits and predicted text embeddings (None without a projector), both float32."""
        features: Tensor
        if self.heads is None:  # timm's own head
            features = self.backbone.forward_head(self.backbone.forward_features(pixels), pre_logits=True)
            logits = self.backbone.get_classifier()(features).float()
            features = features.float()
        else:
            features = self.backbone(pixels).float()
            logits = self.heads.heads(features).logits
        return logits, None if self.projector is None else self.projector(features)

    @property
    def parameter_count(self) -> int:
        """Number of parameters used to classify an image."""
        parts = [self.backbone, *([] if self.heads is None else [self.heads])]
        return sum(weight.numel() for part in parts for weight in part.parameters())

    @property
    def joint_dim(self) -> int:
        """Dimension of the joint space; 0 without a projector."""
        return 0 if self.projector is None else _last(self.projector).out_features


def _heads(spec: ClassifierSpec, tensors: Mapping[str, Tensor], zero_shot: Mapping[str, Tensor]) -> Student:
    """Build the student's heads on an identity backbone; a linear head is stored as one layer."""
    state = dict(tensors)
    config, joint_dim = StudentConfig(projector_layers=0), None
    if spec.head == "late_fusion":
        config = StudentConfig(head="late_fusion", projector_layers=spec.projector_layers)
        projector = _projector(zero_shot, spec.projector_layers)
        joint_dim = _last(projector).out_features
        state |= {name: value for name, value in zero_shot.items() if name.startswith("projector.")}
    student = Student(nn.Identity(), config, dim=spec.dim, n_classes=len(spec.classes), joint_dim=joint_dim)
    student.load_state_dict(state)
    return student


def _projector(tensors: Mapping[str, Tensor], layers: int) -> nn.Linear | nn.Sequential:
    state = {name.removeprefix("projector."): value for name, value in tensors.items() if name.startswith("projector.")}
    if layers == 1:
        out, dim = state["weight"].shape
        projector: nn.Linear | nn.Sequential = nn.Linear(dim, out)
    else:
        (hidden, dim), out = state["0.weight"].shape, state["2.weight"].shape[0]
        projector = nn.Sequential(nn.Linear(dim, hidden), nn.LeakyReLU(0.1), nn.Linear(hidden, out))
    projector.load_state_dict(state)
    return projector


def _last(projector: nn.Linear | nn.Sequential) -> nn.Linear:
    last = projector if isinstance(projector, nn.Linear) else projector[-1]
    if not isinstance(last, nn.Linear):
        raise ModelError(
            "the projector does not end in a linear layer",
            where="zero_shot.safetensors",
            fix="export the classifier again",
        )
    return last


def require_pixels(pixels: Tensor) -> Tensor:
    """Return normalised pixels [b,3,h,w] unchanged.

    Raises:
        DataError: The argument is not a tensor of this shape.
    """
    if isinstance(pixels, Tensor) and pixels.ndim == 4 and pixels.shape[1] == 3:
        return pixels
    given = f"a tensor of shape {list(pixels.shape)}" if isinstance(pixels, Tensor) else type_name(pixels)
    raise DataError(
        f"expected a tensor of normalised pixels of shape [images, 3, height, width], got {given}",
        where="forward",
        fix="pass images to predict or predict_proba, which read and normalise them; or convert an array with "
        "torch.from_numpy",
    )


def parse_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Parse the data type of a backbone's weights: `float32` (`fp32`) or `bfloat16` (`bf16`).

    Raises:
        ModelError: The type is not supported, or is float16, whose range is too small for the activations of
            pathology backbones.
    """
    names = {"float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}
    known = dtype if isinstance(dtype, torch.dtype) else names.get(dtype) if isinstance(dtype, str) else None
    if known is None or known not in names.values():
        raise ModelError(f"unsupported data type {str(dtype)[:80]}", where="dtype", fix="use float32 or bfloat16")
    return known


def parse_device(device: torch.device | str | None) -> torch.device:
    """Parse a device; None selects the GPU, if there is one.

    Raises:
        ModelError: The device does not exist on this machine.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        available = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise ModelError(
            f"a device must be a name, not {type_name(device)}"
            if isinstance(error, TypeError)
            else f"the device cannot be used: {str(error).partition(chr(10))[0]}",
            where=f"device={str(device)[:80]!r}",
            fix=f"use one of: {', '.join(available)}",
        ) from error
    return chosen
