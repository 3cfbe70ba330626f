"""Configuration of the student and its training."""

from typing import Literal

from pydantic import Field, model_validator

from clipit.config.data import Section, Share
from clipit.config.effects import Reporting, Speed


class StudentConfig(Section):
    """Heads on the backbone."""

    head: Literal["linear", "late_fusion"] = "linear"
    """`linear`: one linear head on features and projection, which collapses into a single layer; `late_fusion`: an
    image head and a text head, fused as in the paper."""
    projector_layers: int = Field(1, ge=0, le=2)
    """Layers of the projector; 0: none (image only); 2 needs late_fusion."""
    warm_start: bool = False
    """Stage 1 of the paper: fit the image head on the frozen backbone and the text head on the paired text first."""

    @model_validator(mode="after")
    def _collapsible(self) -> "StudentConfig":
        if self.head == "linear" and self.projector_layers == 2:
            raise ValueError(
                "a 2-layer projector does not collapse into the linear head; "
                "use head: late_fusion or projector_layers: 1"
            )
        if self.head == "late_fusion" and self.projector_layers == 0:
            raise ValueError("late_fusion needs a projector: projector_layers: 1 or 2")
        if self.warm_start and self.head != "late_fusion":
            raise ValueError("warm_start belongs to head: late_fusion")
        return self


class DistillationConfig(Section):
    """What the projector is taught: one frozen vector per tile."""

    tiles: Literal["none", "labelled", "all"] = "all"
    """Which training tiles are distilled."""
    target: Literal[
        "text",
        "image",
        "text_and_image",
        "class_prompts",
        "report_context",
        "report_labels",
        "report_labels_and_image",
        "shuffled_text",
        "random_text",
        "random_codes",
    ] = "text"
    """`text`: mean of the paired snippets. `image`: the VLM's embedding of the tile itself. `text_and_image`: both,
    added. `class_prompts`: prompts of the VLM's zero-shot class. `report_context`: the other snippets of the reports
    that hold the paired one. `report_labels`: what a text-only classifier, trained on the reports' own labels, says
    of the snippet; `report_labels_and_image`: that and the VLM's embedding of the tile, added. Controls:
    `shuffled_text` (another tile's snippets), `random_text` (any snippets), `random_codes` (right pairs, meaningless
    vectors)."""
    sections: tuple[str, ...] = ()
    """`report_context` only: what stands in these sections of the reports, such as diagnosis; empty: in all."""
    weight: float = Field(1.0, ge=0)
    """lambda of L = L_CE + lambda * L_KD."""
    word_drop: float = Field(0.0, ge=0, lt=1)
    """Share of each snippet's words left out of the target (pairs stay as they are)."""
    text: Literal["frozen", "adapter", "lora"] = "frozen"
    """Text side: as the VLM has it; a light adapter on its embeddings; or LoRA on its text tower. The last two are
    fitted first, to tell the labels of paired snippets; then all targets are made once more and frozen."""


class BagsConfig(Section):
    """Many-to-many alignment of text bags with tile bags (CPLIP style): cached vectors beside the student's own."""

    weight: float = Field(0.0, ge=0)
    """Of the loss term; 0: off."""
    snippets: int = Field(5, ge=1, le=64)
    """Most members of a text bag that come from the pairs; pairing.k must give as many."""
    prompts: int = Field(0, ge=0, le=32)
    """Members of a text bag that come from the prompt dictionary: its texts (terms and rephrasings) nearest to the
    tile."""
    class_prompts: int = Field(0, ge=0, le=32)
    """Members of a text bag that come from the class prompts: the texts nearest to the tile."""
    dictionary: str = "histology"
    """Prompt dictionary: YAML file or a packaged name."""
    tiles: int = Field(5, ge=0, le=64)
    """Neighbour tiles in a tile bag, as the VLM sees them, beside the student's own view."""
    text_neighbours: bool = False
    """As many tiles again: those nearest to the tile's first snippet."""
    temperature: float = Field(0.07, gt=0)
    learn_temperature: bool = False
    margin: float | None = Field(None, ge=0)
    """Members whose similarity is lower than that of the best one of the same kind by more than this are left out.
    Kinds: snippets; prompts (of the dictionary and of the classes together); tiles near the tile; tiles near its first
    snippet."""
    shared_negatives: bool = True
    """Two tiles of a batch whose text bags share a text are each other's negatives, as in CLIP; false: they are not.
    Class prompts in the bags make all tiles of one zero-shot class share a text."""
    weighted: bool = False
    """Weight the snippets of a bag as pairing.score_temperature does (which must be set); prompts in the bag weigh what
    a snippet does on average."""


class PromptBagsConfig(Section):
    """The projection against the class prompts: makes the classifier answer zero-shot."""

    weight: float = Field(0.0, ge=0)
    """Of the cross-entropy over cosines with the prompts; 0: off. Labels where known, soft labels where not."""
    temperature: float = Field(0.07, gt=0)


class SoftLabelsConfig(Section):
    """Probabilities that stand for the label of tiles without one."""

    source: Literal["none", "zero_shot", "vlm_probe", "image_only"] = "none"
    """`zero_shot`: the VLM with the class prompts. `vlm_probe`: a linear probe on the VLM's image embeddings, fitted on
    the labels that the run sees (the VLM without a word of text). `image_only`: a student of arm image_only, trained
    first with the same seed (self-training, no VLM in it)."""
    weight: float = Field(1.0, ge=0)
    """Of their cross-entropy with the classifier's logits."""
    temperature: float = Field(1.0, gt=0)
    """Probabilities are sharpened (below 1) or softened (above 1): p^(1/T), normalised."""
    prior_correction: Share = 0.0
    """How far to divide by the mean probability of each class over the training tiles (0: not, 1: fully)."""
    centred: bool = False
    """zero_shot: read images and prompts around their modality's mean, as pairing does."""
    confidence: bool = False
    """Weight each tile by 1 - entropy / log(classes)."""


class ConsistencyConfig(Section):
    """Two augmented views of a tile should get the same answer; costs a second forward pass."""

    weight: float = Field(0.0, ge=0)
    """Of the divergence between the two; 0: off."""


class AugmentationConfig(Section):
    """Augmentation of the training tiles, the same in all arms."""

    dihedral: bool = True
    """Random flips and quarter turns."""
    stain: float = Field(0.1, ge=0)
    """Spread of the stain jitter in optical density; 0: off."""


class TrainingConfig(Section):
    """Optimisation of the student."""

    steps: int = Field(1000, ge=1)
    """Number of optimiser steps."""
    tiles_per_step: int = Field(64, ge=1)
    """Labelled and unlabelled tiles per step, over all processes."""
    labelled_share: Share = 1 / 3
    """Share of labelled tiles in a batch if unlabelled ones are distilled too."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay of AdamW."""
    warmup: Share = 0.1
    """Share of the steps with a linearly rising learning rate; cosine decay follows."""
    label_smoothing: Share = 0.0
    """Label smoothing of the cross-entropy."""
    clip_norm: float = Field(1.0, ge=0)
    """Gradient norm above which gradients are clipped; 0: never."""
    accumulation: int = Field(1, ge=1)
    """Micro-batches per step, over which gradients are accumulated."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of Accelerate."""
    evaluate_every: int = Field(100, ge=1)
    """Steps between two evaluations on the validation split."""
    patience: int | None = Field(None, ge=1)
    """Stop after this number of evaluations without a gain; null: never early."""
    monitor: Literal["accuracy", "balanced_accuracy", "macro_f1", "auroc", "agreement", "information"] = (
        "balanced_accuracy"
    )
    """Validation score that chooses the checkpoint. Without labels: `agreement` with the most probable soft label, or
    `information`, the entropy of the mean prediction minus the mean entropy (Krause et al., NIPS 2010)."""
    log_every: Reporting[int] = Field(10, ge=1)
    """Steps between two rows of metrics.jsonl."""
    checkpoint_every: Speed[int] = Field(200, ge=1)
    """Steps between two resumable checkpoints."""
    threads: Speed[int] = Field(0, ge=0)
    """Threads that read tiles in advance; 0: one per core, at most 8."""
    cache_tiles: Speed[Literal["auto", "memory", "none"]] = "auto"
    """Keep resized tiles in memory; `auto`: if they take less than 2 GiB."""
    augmentation: AugmentationConfig = AugmentationConfig()
