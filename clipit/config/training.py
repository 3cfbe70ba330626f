"""Configuration of the student, its loss terms and its training."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from clipit.config.effects import AddedLater, Data, Reporting, Speed
from clipit.config.paths import LocalPath
from clipit.config.section import Distinct, Section, Share


class StudentConfig(Section):
    """Classification heads on the backbone."""

    head: Literal["linear", "late_fusion"] = "linear"
    """`linear`: one linear head on the features and the projected text embedding; projector and head collapse into a
    single layer. `late_fusion`: an image head and a text head, fused as in the CLIP-IT paper."""
    projector_layers: int = Field(1, ge=0, le=2)
    """Number of projector layers; 0: no projector (image only); 2 requires `head: late_fusion`."""
    warm_start: bool = False
    """Before training, fit the image head on the frozen backbone and the text head on the paired text (stage 1 of the
    CLIP-IT paper)."""

    @model_validator(mode="after")
    def _check_heads(self) -> "StudentConfig":
        if self.head == "linear" and self.projector_layers == 2:
            raise ValueError(
                "a 2-layer projector does not collapse into the linear head; use head=late_fusion or projector_layers=1"
            )
        if self.head == "late_fusion" and self.projector_layers == 0:
            raise ValueError("head=late_fusion needs a projector; use projector_layers=1 or 2")
        if self.warm_start and self.head != "late_fusion":
            raise ValueError("warm_start requires head=late_fusion")
        return self


class DistillationConfig(Section):
    """Distillation into the projector: one frozen target embedding per tile."""

    tiles: Literal["none", "labelled", "all"] = "all"
    """Training tiles that get a distillation target."""
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
    added. `class_prompts`: prompts of the class that the VLM predicts zero-shot. `report_context`: the other snippets
    of the reports that contain the paired snippet. `report_labels`: prediction for the snippet by a text-only
    classifier trained on report-level labels. `report_labels_and_image`: this prediction and the VLM's embedding of the
    tile, added. Controls: `shuffled_text` (another tile's snippets), `random_text` (random snippets), `random_codes`
    (correct pairs, meaningless vectors)."""
    sections: tuple[str, ...] = ()
    """`report_context` only: use snippets of these report sections, such as diagnosis; empty uses all."""
    weight: float = Field(1.0, ge=0)
    """Weight of the distillation loss: lambda in L = L_CE + lambda * L_KD."""
    word_drop: float = Field(0.0, ge=0, lt=1)
    """Fraction of each snippet's words to drop before it is embedded as a target; pairing is not affected."""
    text: Literal["frozen", "adapter", "lora"] = "frozen"
    """Text encoder: the VLM's frozen text tower, a light adapter on its embeddings, or LoRA in the text tower.
    `adapter` and `lora` are first fitted to predict the labels of paired snippets; then all targets are recomputed and
    frozen."""


class BagsConfig(Section):
    """Many-to-many alignment of text bags with tile bags, as in CPLIP, with cached VLM embeddings as bag members."""

    weight: float = Field(0.0, ge=0)
    """Weight of the loss term; 0: off."""
    snippets: int = Field(5, ge=1, le=64)
    """Maximum number of paired snippets in a text bag; `pairing.k` must be at least as large."""
    prompts: int = Field(0, ge=0, le=32)
    """Number of prompt-dictionary texts (terms and rephrasings) in a text bag: those nearest to the tile."""
    whole_entries: AddedLater[bool] = False
    """Add all texts of the dictionary entries of the prompts in the bag, at most 12 per entry: term, rephrasings,
    findings and causes."""
    class_prompts: int = Field(0, ge=0, le=32)
    """Number of class-prompt texts in a text bag: those nearest to the tile."""
    dictionary: Data[LocalPath[str]] = "histology"
    """Prompt dictionary: a YAML file or the name of a packaged dictionary."""
    tiles: int = Field(5, ge=0, le=64)
    """Number of neighbour tiles, as VLM embeddings, added to the student's embedding in a tile bag."""
    text_neighbours: bool = False
    """Also add the same number of tiles nearest to the tile's first snippet."""
    temperature: float = Field(0.07, gt=0)
    """Temperature that divides the cosine similarities of the contrastive loss."""
    learn_temperature: bool = False
    """Learn the temperature during training, starting at `temperature`."""
    margin: float | None = Field(None, ge=0)
    """Drop bag members whose similarity is lower than that of the best member of the same kind by more than this
    margin; null: keep all. Kinds: snippets; prompts (of the dictionary and the classes together); tiles near the tile;
    tiles near its first snippet."""
    shared_negatives: bool = True
    """Treat two tiles in a batch as negatives, as in CLIP, even if their text bags share a text. With class prompts in
    the bags, all tiles of one zero-shot class share a text."""
    weighted: bool = False
    """Weight the snippets of a bag by softmax(cosine / temperature), with the temperature `pairing.score_temperature`,
    which must be set; each prompt in the bag gets the mean weight of a snippet."""


class PromptBagsConfig(Section):
    """Cross-entropy between the projected text embedding and the class prompts, for zero-shot classification."""

    weight: float = Field(0.0, ge=0)
    """Weight of the cross-entropy over cosine similarities with the prompts; 0: off. Targets are the labels of labelled
    tiles and the soft labels of others."""
    temperature: float = Field(0.07, gt=0)
    """Temperature that divides the cosine similarities."""


class OwnReportConfig(Section):
    """Labels from reports of the patients that the tiles come from, matched by group.

    Used by runs with `soft_labels.source: own_report`, by `clipit mil` and by `clipit report-labels`.
    """

    labels: Literal["label", "rules", "text", "case"] = "label"
    """`label`: the column `reports.label_column`. `rules`: phrases per class, with negation and uncertainty. `text`: a
    text-only classifier fitted on the reports of patients with labelled tiles, cross-fitted by patient. `case`
    (control without text): the labels of the patient's labelled tiles, even if the patient has no report."""
    class_map: dict[str, str] = Field(default_factory=dict)
    """`label` only: mapping from report labels to classes; reports with other labels are counted and not used. Empty:
    the labels are the classes."""
    rules: Data[LocalPath[str | None]] = None
    """`rules` only: a YAML file or the name of a packaged rule set."""
    features: Literal["tfidf", "vlm"] = "tfidf"
    """`text` only: TF-IDF of words and word pairs, or the mean VLM embedding of the report's snippets."""
    several: Literal["all", "latest"] = "all"
    """For patients with several reports: average their labels, or use only the report with the latest date
    (`reports.date_column`)."""
    tiles: Literal["all", "tissue", "at_least_one"] = "all"
    """Tiles of a patient that get the label. `tissue`: all, weighted by the VLM's zero-shot probability of
    `tissue_classes`. `at_least_one`: at least one tile per patient, chosen by alternating between fitting a linear
    probe on the VLM's image embeddings and reassigning tiles; the other tiles get the class `background`."""
    tissue_prompts: Data[LocalPath[str | None]] = None
    """`tissue` only: prompt set with the kinds of tissue."""
    tissue_classes: Distinct[str] = ()
    """`tissue` only: classes of `tissue_prompts` that the label refers to, such as the tumour."""
    background: str | None = None
    """`at_least_one` only: class of the tiles that do not show the finding. All tiles of a patient with this label keep
    it."""
    shuffled: bool = False
    """Control: shuffle the labels across patients with the same organ."""

    @property
    def uses_tile_labels(self) -> bool:
        """Whether these labels are derived from tile labels, and so belong to patients rather than to reports."""
        return self.labels in ("text", "case")


class SoftLabelsConfig(Section):
    """Soft labels: class probabilities as targets for unlabelled tiles."""

    source: Literal["none", "zero_shot", "vlm_probe", "image_only", "own_report", "annotators"] = "none"
    """`zero_shot`: the VLM with the class prompts. `vlm_probe`: a linear probe on the VLM's image embeddings, fitted on
    the labels of the run (uses no text). `image_only`: a student of the arm `image_only`, trained first with the
    same seed (self-training, uses no VLM). `own_report`: the report of the tile's patient (section `own_report`).
    `annotators`: the posteriors of `tiles.annotations.labels: posterior`, which replace the labels of labelled
    tiles."""
    weight: float = Field(1.0, ge=0)
    """Weight of the cross-entropy between the classifier's logits and the soft labels."""
    temperature: float = Field(1.0, gt=0)
    """Temperature T that sharpens (below 1) or softens (above 1) the probabilities: p^(1/T), normalised."""
    prior_correction: Share = 0.0
    """Strength of the prior correction, which divides each class probability by its mean over the training tiles (0: no
    correction, 1: full)."""
    centred: bool = False
    """`zero_shot` only: subtract the mean of each modality from image and prompt embeddings, as pairing does."""
    confidence: bool = False
    """Weight each tile by 1 - entropy / log(classes)."""


class ConsistencyConfig(Section):
    """Consistency between the predictions for two augmented views of a tile; costs a second forward pass."""

    weight: float = Field(0.0, ge=0)
    """Weight of the divergence between the two predictions; 0: off."""


class AugmentationConfig(Section):
    """Augmentation of the training tiles."""

    dihedral: bool = True
    """Random flips and 90-degree rotations."""
    stain: float = Field(0.1, ge=0)
    """Strength of the stain jitter in optical density; 0: off."""


class TrainingConfig(Section):
    """Optimisation of the student."""

    steps: int = Field(1000, ge=1)
    """Number of optimiser steps."""
    tiles_per_step: int = Field(64, ge=1)
    """Batch size: labelled and unlabelled tiles per step, over all processes."""
    labelled_share: Share = 1 / 3
    """Fraction of labelled tiles in a batch if a loss term also uses unlabelled tiles."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay of AdamW."""
    warmup: Share = 0.1
    """Fraction of the steps used for linear warm-up of the learning rate; cosine decay follows."""
    label_smoothing: Share = 0.0
    """Label smoothing of the cross-entropy with labels or with annotator posteriors."""
    clip_norm: float = Field(1.0, ge=0)
    """Maximum gradient norm; gradients above it are clipped; 0: no clipping."""
    accumulation: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    """Number of micro-batches per step, whose gradients are accumulated; `auto`: the smallest number that fits in
    the device's memory."""
    gradient_checkpointing: Speed[Literal["auto", "always", "never"]] = "auto"
    """Keep only the inputs of each block of the backbone, and recompute the rest in the backward pass: less memory,
    about a third more time, the same gradients. `auto`: only if the batch does not fit without it or, with
    `accumulation: auto`, fits only in micro-batches of fewer than 8 tiles. If this key is `always` or `never` and
    `accumulation` is a number, a batch that seems too large for the device causes a warning instead of an error."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision, as in Accelerate; `auto`: bf16 on GPUs with native support, otherwise none."""
    compile: AddedLater[bool] = False
    """Compile the backbone with `torch.compile`, which takes up to a few minutes at the first step and changes results
    slightly (rounding)."""
    evaluate_every: int = Field(100, ge=1)
    """Steps between two evaluations on the validation split."""
    patience: int | None = Field(None, ge=1)
    """Stop after this number of evaluations without improvement; null: no early stopping."""
    monitor: Literal["accuracy", "balanced_accuracy", "macro_f1", "auroc", "agreement", "information"] = (
        "balanced_accuracy"
    )
    """Validation score that selects the checkpoint. Without labels: `agreement` with the most probable soft label, or
    `information`, the entropy of the mean prediction minus the mean entropy (Krause et al., NIPS 2010)."""
    log_every: Reporting[int] = Field(10, ge=1)
    """Steps between two rows of metrics.jsonl."""
    checkpoint_every: Speed[int] = Field(200, ge=1)
    """Steps between two resumable checkpoints."""
    threads: Speed[int] = Field(0, ge=0)
    """Number of threads that prefetch tiles; 0: one per available core, at most 8."""
    cache_tiles: Speed[Literal["auto", "memory", "disk", "none"]] = "auto"
    """Cache of resized tiles. `disk`: one memory-mapped array in the workspace, shared by runs and processes. `auto`:
    in memory if the tiles take less than 2 GiB; otherwise on disk if all tiles fit within `training.cache_gigabytes`
    and a run reads each tile at least twice."""
    cache_gigabytes: Speed[float] = Field(20.0, ge=0)
    """Maximum size in gigabytes of the disk cache of all tiles of the configuration, with `cache_tiles: auto`."""
    augmentation: AugmentationConfig = AugmentationConfig()

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches per step; 1 while `accumulation: auto` is not resolved."""
        return 1 if self.accumulation == "auto" else self.accumulation
