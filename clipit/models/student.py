"""The student: a backbone and heads, of which one predicts the VLM's text embedding."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipit.config import LoraConfig, StudentConfig
from clipit.errors import ModelError, explain
from clipit.models.backbones import Backbone
from clipit.models.lora import add_lora

_SLOPE = 0.1  # of LeakyReLU, arXiv 2504.16181


@dataclass(frozen=True)
class StudentOutput:
    """Of one batch: class logits [b,C], predicted text embeddings [b,D] (None without projector), features [b,d]."""

    logits: torch.Tensor
    projected: torch.Tensor | None
    features: torch.Tensor


class Student(nn.Module):
    """Backbone z, projector t^ = P(z), and one of two heads.

    `linear`: W_z z + W_t t^ + b with an affine, un-normalised t^ (`image_head`, `text_head`), which
    `collapse_linear` turns into one layer of z. `late_fusion` (arXiv 2504.16181, sec. 3): F [h_v(z); h_t(t^)]
    with `image_head`, `text_head` and `fusion`.

    Attributes:
        image_head: z to class logits.
        projector: z to the VLM's joint space; None without text.
        text_head: t^ to class logits; None without text.
        fusion: Both logits to the final ones; None with the linear head.
    """

    def __init__(
        self, backbone: nn.Module, config: StudentConfig, *, dim: int, n_classes: int, joint_dim: int | None
    ) -> None:
        """Heads start from torch's generator; the image head comes first, so that it is equal in all arms of a seed.

        Raises:
            ModelError: A projector without the dimension of the joint space, or fewer than two classes.
        """
        super().__init__()
        if n_classes < 2:
            raise ModelError(
                explain(f"a classifier of {n_classes} classes", where="tiles.classes", fix="name at least 2")
            )
        self.config = config
        self.backbone = backbone
        self.image_head = nn.Linear(dim, n_classes)
        self.projector: nn.Linear | nn.Sequential | None = None
        self.text_head: nn.Linear | nn.Sequential | None = None
        self.fusion: nn.Linear | None = None
        if config.projector_layers == 0:
            return
        if joint_dim is None:
            raise ModelError(
                explain(
                    "a projector needs the VLM's dimension", where="student.projector_layers", fix="load the VLM first"
                )
            )
        self.projector = (
            nn.Linear(dim, joint_dim) if config.projector_layers == 1 else _two_layers(dim, joint_dim, joint_dim)
        )
        if config.head == "linear":
            self.text_head = nn.Linear(joint_dim, n_classes, bias=False)
        else:
            self.text_head = _two_layers(joint_dim, joint_dim, n_classes)
            self.fusion = nn.Linear(2 * n_classes, n_classes)

    def forward(self, pixels: Float[torch.Tensor, "b 3 h w"]) -> StudentOutput:
        """Normalised pixels to logits, predicted text embedding (un-normalised) and features."""
        return self.heads(self.backbone(pixels))

    def heads(self, features: Float[torch.Tensor, "b d"]) -> StudentOutput:
        """The same from the backbone's features."""
        logits = self.image_head(features)
        if self.projector is None or self.text_head is None:
            return StudentOutput(logits, None, features)
        projected = self.projector(features)
        text_logits = self.text_head(projected)
        if self.fusion is None:
            return StudentOutput(logits + text_logits, projected, features)
        return StudentOutput(self.fusion(torch.cat([logits, text_logits], dim=1)), projected, features)

    def train(self, mode: bool = True) -> "Student":
        """Training mode, except that BatchNorm keeps its statistics and a frozen backbone stays as it is.

        Batch statistics would depend on the number of processes, and would leak between labelled and
        unlabelled tiles.
        """
        super().train(mode)
        if mode:
            if not any(weight.requires_grad for weight in self.backbone.parameters()):
                self.backbone.eval()
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def head_state(self) -> dict[str, torch.Tensor]:
        """All weights but the backbone's."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("backbone.")}


def build_student(
    backbone: Backbone,
    student: StudentConfig,
    lora: LoraConfig,
    tuning: Literal["lora", "frozen", "full"],
    *,
    n_classes: int,
    joint_dim: int | None,
) -> Student:
    """A student over a backbone (whose module is taken over), with exactly the weights trainable that should be.

    Args:
        backbone: As loaded.
        student: Heads.
        lora: Used with tuning `lora`.
        tuning: `lora`, `frozen` (heads only) or `full`.
        n_classes: Number of classes C.
        joint_dim: Dimension D of the VLM's joint space; may be None without a projector.

    Raises:
        ModelError: LoRA targets that match nothing, or heads that cannot be built.
    """
    device = next(backbone.module.parameters()).device
    trunk = backbone.module
    if tuning == "lora":
        local = "/" in backbone.name and not backbone.name.startswith("hf-hub:")  # a path says nothing elsewhere
        trunk = add_lora(trunk, lora, base_name=backbone.timm.architecture if local else backbone.name)
    else:
        trunk.requires_grad_(tuning == "full")
    whole = Student(trunk, student, dim=backbone.dim, n_classes=n_classes, joint_dim=joint_dim)
    return whole.to(device).train()


def collapse_linear(student: Student) -> tuple[Float[torch.Tensor, "C d"], Float[torch.Tensor, " C"]]:
    """Weight and bias of the one linear layer of z that equals the linear head.

    W = W_z + W_t P, b = b_z + W_t p for the projector t^ = P z + p; computed in float64.

    Raises:
        ModelError: The head is not linear.
    """
    if student.config.head != "linear":
        raise ModelError(explain("late fusion does not collapse", where="student.head", fix="use head: linear"))
    weight, bias = student.image_head.weight.detach().double(), student.image_head.bias.detach().double()
    if isinstance(student.projector, nn.Linear) and isinstance(student.text_head, nn.Linear):
        text = student.text_head.weight.detach().double()
        weight = weight + text @ student.projector.weight.detach().double()
        bias = bias + text @ student.projector.bias.detach().double()
    return weight.float(), bias.float()


def _two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.LeakyReLU(_SLOPE), nn.Linear(hidden, outputs))
