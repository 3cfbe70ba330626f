"""The student: a backbone with a classification head and, for distillation, a projector to text embeddings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipit.config.run import LoraConfig, StudentConfig
from clipit.errors import ModelError
from clipit.models.backbones import Backbone
from clipit.models.lora import add_lora

_SLOPE = 0.1  # negative slope of LeakyReLU, as in arXiv 2504.16181


@dataclass(frozen=True)
class StudentOutput:
    """Outputs of the student for one batch.

    Attributes:
        logits: Class logits [b,C].
        projected: Predicted text embeddings [b,D]; None without a projector.
        features: Features of the backbone [b,d].
        second: Predicted embeddings of a second VLM [b,D2]; None without a second VLM.
    """

    logits: torch.Tensor
    projected: torch.Tensor | None
    features: torch.Tensor
    second: torch.Tensor | None = None


class Student(nn.Module):
    """Backbone with features z, projector t^ = P(z), and one of two classification heads.

    `linear`: W_z z + W_t t^ + b with an affine, un-normalised t^ (`image_head`, `text_head`), which
    `collapse_linear` turns into one layer of z. `late_fusion` (arXiv 2504.16181, sec. 3): F [h_v(z); h_t(t^)]
    with `image_head`, `text_head` and `fusion`.

    Attributes:
        image_head: Layer from z to class logits.
        projector: Layers from z to the VLM's joint space; None without text.
        text_head: Layers from t^ to class logits; None without text.
        fusion: Layer from the logits of both heads to the final logits; None with the linear head.
        second_projector: Layer from z to a second VLM's joint space; `second_head` maps its output to logits that are
            added to the others (linear head only).
        loss_parameters: Trainable scalars of loss terms; never exported.
    """

    def __init__(
        self,
        backbone: nn.Module,
        config: StudentConfig,
        *,
        dim: int,
        n_classes: int,
        joint_dim: int | None,
        second_dim: int | None = None,
        loss_parameters: Mapping[str, float] | None = None,
    ) -> None:
        """Initialise the heads with PyTorch's global generator, the image head first.

        All arms with the same seed therefore start from the same image head.

        Raises:
            ModelError: There are fewer than two classes, or a projector is configured without the joint dimension.
        """
        super().__init__()
        if n_classes < 2:
            raise ModelError(f"need at least 2 classes, got {n_classes}", where="tiles.classes", fix="add classes")
        self.config = config
        self.loss_parameters = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(value)) for name, value in (loss_parameters or {}).items()}
        )
        self.backbone = backbone
        self.image_head = nn.Linear(dim, n_classes)
        self.projector: nn.Linear | nn.Sequential | None = None
        self.text_head: nn.Linear | nn.Sequential | None = None
        self.fusion: nn.Linear | None = None
        self.second_projector: nn.Linear | None = None
        self.second_head: nn.Linear | None = None
        if config.projector_layers == 0:
            return
        if joint_dim is None:
            raise ModelError(
                "a projector needs the dimension of the VLM's joint space",
                where="student.projector_layers",
                fix="load the VLM first",
            )
        self.projector = (
            nn.Linear(dim, joint_dim) if config.projector_layers == 1 else _two_layers(dim, joint_dim, joint_dim)
        )
        if config.head == "linear":
            self.text_head = nn.Linear(joint_dim, n_classes, bias=False)
        else:
            self.text_head = _two_layers(joint_dim, joint_dim, n_classes)
            self.fusion = nn.Linear(2 * n_classes, n_classes)
        if second_dim is not None:  # last, so that the initial weights of all other heads do not depend on it
            self.second_projector = nn.Linear(dim, second_dim)
            self.second_head = nn.Linear(second_dim, n_classes, bias=False)

    def forward(self, pixels: Float[torch.Tensor, "b 3 h w"]) -> StudentOutput:
        """Map normalised pixels to logits, predicted text embeddings (un-normalised) and features."""
        return self.heads(self.backbone(pixels))

    def heads(self, features: Float[torch.Tensor, "b d"]) -> StudentOutput:
        """Map features of the backbone to the output of `forward`."""
        logits = self.image_head(features)
        if self.projector is None or self.text_head is None:
            return StudentOutput(logits, None, features)
        projected = self.projector(features)
        text_logits = self.text_head(projected)
        if self.fusion is None:
            second = None
            if self.second_projector is not None and self.second_head is not None:
                second = self.second_projector(features)
                text_logits = text_logits + self.second_head(second)
            return StudentOutput(logits + text_logits, projected, features, second)
        return StudentOutput(self.fusion(torch.cat([logits, text_logits], dim=1)), projected, features)

    def train(self, mode: bool = True) -> "Student":
        """Set training mode, except for batch normalisation and a frozen backbone.

        Batch statistics would depend on the number of processes, and leak between labelled and unlabelled tiles.
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
        """Return the exported weights of the heads, without the backbone and the loss parameters."""
        excluded = ("backbone.", "loss_parameters.")
        return {name: value for name, value in self.state_dict().items() if not name.startswith(excluded)}


def build_student(
    backbone: Backbone,
    student: StudentConfig,
    lora: LoraConfig,
    tuning: Literal["lora", "frozen", "full"],
    *,
    n_classes: int,
    joint_dim: int | None,
    second_dim: int | None = None,
    loss_parameters: Mapping[str, float] | None = None,
) -> Student:
    """Build a student on a backbone, and make only the weights selected by `tuning` and the heads trainable.

    The backbone's module is changed in place.

    Args:
        lora: Rank, alpha, dropout and targets; used if `tuning` is `lora`.
        tuning: `lora`, `frozen` (heads only) or `full`.
        joint_dim: Dimension D of the VLM's joint space; may be None without a projector.
        second_dim: Dimension of a second VLM's joint space, if there is one.
        loss_parameters: Initial values of the trainable scalars of loss terms, by name.

    Raises:
        ModelError: LoRA targets match no layer, or the heads cannot be built.
    """
    device = next(backbone.module.parameters()).device
    trunk = backbone.module
    if tuning == "lora":
        trunk = add_lora(trunk, lora, base_name=backbone.public_name)
    else:
        trunk.requires_grad_(tuning == "full")
    built = Student(
        trunk,
        student,
        dim=backbone.dim,
        n_classes=n_classes,
        joint_dim=joint_dim,
        second_dim=second_dim,
        loss_parameters=loss_parameters,
    )
    return built.to(device).train()


def collapse_linear(student: Student) -> tuple[Float[torch.Tensor, "C d"], Float[torch.Tensor, " C"]]:
    """Collapse the linear head into one linear layer of z, and return its weight and bias.

    W = W_z + W_t P and b = b_z + W_t p for the projector t^ = P z + p, computed in float64. The head on a second VLM's
    projector is added in the same way.

    Raises:
        ModelError: The head is not linear.
    """
    if student.config.head != "linear":
        raise ModelError(
            "late fusion cannot be collapsed into one linear layer",
            where="student.head",
            fix="set student.head: linear",
        )
    weight, bias = student.image_head.weight.detach().double(), student.image_head.bias.detach().double()
    for projector, head in ((student.projector, student.text_head), (student.second_projector, student.second_head)):
        if isinstance(projector, nn.Linear) and isinstance(head, nn.Linear):
            text = head.weight.detach().double()
            weight = weight + text @ projector.weight.detach().double()
            bias = bias + text @ projector.bias.detach().double()
    return weight.float(), bias.float()


def _two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.LeakyReLU(_SLOPE), nn.Linear(hidden, outputs))
