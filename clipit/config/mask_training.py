"""Configuration of training on masks: a linear head on patch tokens, a U-Net, and pseudo-labels."""

from typing import Literal

from pydantic import Field, field_validator

from clipit.config.effects import Evaluation
from clipit.config.mil import MilTrainingConfig
from clipit.config.section import Distinct, MicrometresPerPixel, Section, Seeds


class TokenHeadConfig(Section):
    """Linear head on frozen patch tokens."""

    overlap: float = Field(0.5, ge=0, lt=1)
    """Overlap of adjacent windows as a fraction of their edge length; tokens in several windows are averaged."""
    batch_size: int = Field(64, ge=1)
    """Windows per forward pass."""
    steps: int = Field(1000, ge=1)
    """Training steps of the head."""
    tokens_per_step: int = Field(2048, ge=1)
    """Tokens per training step, drawn from at most 16 images."""
    learning_rate: float = Field(0.1, gt=0)
    """Peak learning rate of AdamW; cosine decay to zero follows."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay of AdamW."""


class UnetConfig(Section):
    """U-Net trained on masks, as a baseline."""

    encoder: str = "resnet18"
    """Name of the encoder in segmentation-models-pytorch."""
    encoder_weights: str | None = None
    """Name of the encoder's pretrained weights in that package, such as imagenet; the package downloads them. Null:
    random weights."""
    width: int = Field(256, ge=16)
    """Number of channels of the deepest of the decoder's five levels; each further level has half as many, but at least
    16."""
    mpp: MicrometresPerPixel | None = None
    """Micrometres per pixel of the resampled images; null: no resampling."""
    crop: int = Field(256, ge=32, multiple_of=32)
    """Edge length of training crops and of prediction windows in pixels."""
    batch_size: int = Field(8, ge=1)
    """Crops per step."""
    steps: int = Field(1000, ge=1)
    """Training steps."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate of AdamW; cosine decay to zero follows."""
    weight_decay: float = Field(1e-2, ge=0)
    """Weight decay of AdamW."""
    overlap: Evaluation[float] = Field(0.25, ge=0, lt=1)
    """Overlap of adjacent prediction windows as a fraction of their edge length; a different value changes predictions
    without training again."""


class PseudoLabelsConfig(Section):
    """Pixel-level pseudo-labels from multiple-instance learning on image, slide or patient labels."""

    evidence: dict[str, str] = Field(default_factory=dict)
    """Mapping from each tile label to the mask class that it indicates, such as `{normal: other, tumour: tumour}`.
    Images whose label indicates the `background` class contain no other class."""
    background: str | None = None
    """Mask class that images with any label may contain; null: the class with the value 0."""
    confidence: float = Field(0.9, gt=0.5, lt=1)
    """Minimum probability for a token to get a pseudo-label; other tokens are ignored."""
    training: MilTrainingConfig = MilTrainingConfig(pooling="mean")
    """Multiple-instance model, whose instances are tokens. Mean pooling trains the logits of all tokens, whereas
    attention leaves the logits of tokens with zero weight undetermined."""


class MaskTrainingConfig(Section):
    """Training on masks: tokens, numbers of masks and seeds."""

    tokens: Literal["vlm", "backbone"] = "backbone"
    """Model whose tokens are used to train the head and to derive pseudo-labels."""
    masks: Distinct[int | None] = Field((1, 2, 5, 10, None), min_length=1)
    """Numbers of training masks, drawn at random from as many patients as possible; null: all. A larger draw contains
    the smaller ones."""
    seeds: Seeds = (0,)
    """Seeds for drawing the masks and for training."""
    head: TokenHeadConfig = TokenHeadConfig()
    unet: UnetConfig = UnetConfig()
    pseudo: PseudoLabelsConfig = PseudoLabelsConfig()

    @field_validator("masks")
    @classmethod
    def _check_masks(cls, counts: tuple[int | None, ...]) -> tuple[int | None, ...]:
        if any(count is not None and count < 1 for count in counts):
            raise ValueError("each number must be at least 1, or null for all masks")
        return counts
