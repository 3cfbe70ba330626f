"""Patch tokens of a frozen VLM, backbone or classifier: one vector per patch of an image."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from clipit.errors import ModelError, is_out_of_memory
from clipit.models.token_grids import no_tokens, pool_each, trunk_grid
from clipit.models.trunks import cpu_parts
from clipit.output_files.artifacts import fingerprint

if TYPE_CHECKING:
    from clipit.models.backbones import Backbone
    from clipit.models.inference import Classifier
    from clipit.models.preprocess import Preprocess
    from clipit.models.vlm import VLM


@dataclass(frozen=True)
class PatchTokens:
    """A frozen model that computes patch tokens.

    Attributes:
        kind: Kind of model; tokens of a `vlm` are in the joint space of images and texts.
        preprocess: Preprocessing of the model; its `size` is the edge length of the model's input.
        side: Number of tokens along one edge of the input.
        mpp: Micrometres per pixel of its training tiles; None if unknown.
        fingerprint: Fingerprint of weights, preprocessing and precision.
        compute: Function from normalised pixels [b,3,s,s] to tokens [b,side,side,dim].
    """

    name: str
    kind: Literal["vlm", "backbone", "classifier"]
    preprocess: "Preprocess"
    side: int
    dim: int
    mpp: float | None
    fingerprint: str
    device: torch.device
    compute: Callable[[Tensor], Tensor] = field(repr=False, compare=False)

    def encode(self, pixels: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b side side dim"]:
        """Encode square images of the model's input size as un-normalised float32 tokens.

        Raises:
            ModelError: The images do not have the model's input size.
        """
        size = self.preprocess.size
        if tuple(pixels.shape[-2:]) != (size, size):
            raise ModelError(
                f"expected images of {size} x {size} pixels, got {tuple(pixels.shape[-2:])}",
                where=self.name,
                fix="cut larger images into windows of this size",
            )
        with torch.inference_mode():
            normalised = self.preprocess.normalise(pixels.to(self.device))
            tokens = torch.cat([self.compute(part) for part in cpu_parts(normalised)])
        return tokens.float().clone()


def vlm_tokens(vlm: "VLM") -> PatchTokens:
    """Return the `PatchTokens` of a VLM, projected into its joint space like its image embeddings.

    Raises:
        ModelError: The VLM provides no patch tokens.
    """
    side, dim = _output_shape(vlm.encode_patches, vlm.preprocess.size, vlm.device, vlm.name)
    if dim != vlm.joint_dim:
        raise no_tokens(vlm.name, f"its tokens have {dim} dimensions, but the joint space has {vlm.joint_dim}")
    identity = fingerprint([vlm.fingerprint, vlm.precision])
    return PatchTokens(
        vlm.name, "vlm", vlm.preprocess, side, dim, vlm.expected_mpp, identity, vlm.device, vlm.encode_patches
    )


def backbone_tokens(backbone: "Backbone") -> PatchTokens:
    """Return the `PatchTokens` of a backbone, before its pooling.

    Raises:
        ModelError: The backbone provides neither patch tokens nor a feature map.
    """
    device = next(backbone.module.parameters()).device
    compute = _grid_function(backbone.module)
    side, dim = _output_shape(compute, backbone.preprocess.size, device, backbone.name)
    return PatchTokens(
        backbone.public_name, "backbone", backbone.preprocess, side, dim, backbone.expected_mpp, backbone.fingerprint,
        device, compute,
    )  # fmt: skip


def classifier_tokens(classifier: "Classifier") -> PatchTokens:
    """Return the `PatchTokens` of a classifier's adapted backbone, before its pooling and heads.

    Raises:
        ModelError: The backbone provides neither patch tokens nor a feature map.
    """
    spec, module = classifier.spec, classifier.network.backbone
    inner = _grid_function(module)

    def compute(pixels: Tensor) -> Tensor:
        return inner(pixels.to(classifier.dtype))

    name = f"classifier {spec.provenance.get('run', 'unknown')}"
    side, dim = _output_shape(compute, spec.preprocess.size, classifier.device, name)
    identity = fingerprint([dict(spec.files), str(classifier.dtype)])
    return PatchTokens(name, "classifier", spec.preprocess, side, dim, spec.mpp, identity, classifier.device, compute)


def student_tokens(classifier: "Classifier") -> PatchTokens:
    """Return the `PatchTokens` of a classifier, projected into the joint space like its pooled features.

    Raises:
        ModelError: The classifier was trained without text, or provides no patch tokens.
    """
    projector = classifier.network.projector
    if projector is None:
        raise ModelError(
            "this classifier was trained without text, so its tokens cannot be compared with prompts",
            where=f"classifier {classifier.spec.provenance.get('run', 'unknown')}",
            fix="use a classifier trained with student.projector_layers=1 or 2",
        )
    module = classifier.network.backbone

    def compute(pixels: Tensor) -> Tensor:
        grid = pool_each(module, trunk_grid(module, pixels.to(classifier.dtype)), pre_logits=True)
        projected: Tensor = projector(grid.float())
        return projected

    tokens = classifier_tokens(classifier)
    side, dim = _output_shape(compute, tokens.preprocess.size, classifier.device, tokens.name)
    return replace(
        tokens, name=f"student {tokens.name.removeprefix('classifier ')}", side=side, dim=dim, compute=compute
    )


def _grid_function(module: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda pixels: trunk_grid(module, pixels)


def _output_shape(compute: Callable[[Tensor], Tensor], size: int, device: torch.device, name: str) -> tuple[int, int]:
    """Run a model once, and return the number of tokens along an edge and their dimension.

    Raises:
        ModelError: The model provides no square grid of tokens.
    """
    try:
        with torch.inference_mode():
            tokens = compute(torch.zeros(1, 3, size, size, device=device))
    except ModelError:
        raise
    except Exception as error:  # models from outside the package may raise anything
        if is_out_of_memory(error):
            raise
        raise no_tokens(name, " ".join(str(error).split())[:200]) from error
    if tokens.ndim != 4 or tokens.shape[1] != tokens.shape[2]:
        raise no_tokens(name, f"its features of shape {tuple(tokens.shape)} are not a square grid")
    return int(tokens.shape[1]), int(tokens.shape[3])
