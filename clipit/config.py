"""The configuration of a run: one YAML file, overridden on the command line (`--lora.rank=8`).

Unknown keys are errors, and all errors are reported together. The meaning and the unit of each key
stand here and nowhere else; `docs/configuration.md` is made from these descriptions.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
Share = Annotated[float, Field(ge=0.0, le=1.0)]


def has_lists(index: str) -> bool:
    """Whether a key of faiss.index_factory makes an inverted file (IVF), of which `nprobe` lists are searched."""
    return re.search(r"(^|,)IVF\d", index) is not None


class Section(BaseModel):
    """Base of all sections: no unknown keys, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class LabelsConfig(Section):
    """Which training tiles keep their label; the others count as unlabelled."""

    kind: Literal["all", "none", "fraction", "per_class"] = "all"
    value: float = Field(1.0, gt=0)
    """Share of the labels (fraction) or number per class (per_class)."""
    validation: Literal["same", "all"] = "same"
    """`same`: the validation part keeps no more labels than training (they are labels, too)."""
    seed: int | None = None
    """Chooses the labelled tiles; the run's seed when not given."""


class TilesConfig(Section):
    """Where the tiles are, and how they are split."""

    source: Literal["folders", "table", "pcam", "nct_crc", "bach", "huggingface"]
    path: str
    """Folder, table file or Hugging Face id, as the source needs it."""
    images: str | None = None
    """Table only: folder or zip that the table's paths are relative to (default: the table's folder)."""
    columns: dict[Literal["id", "path", "label", "split", "group", "mpp"], str] = Field(default_factory=dict)
    """Table and huggingface: our name -> the column's name, where they differ."""
    splits: dict[Literal["train", "validation", "test"], str] = Field(default_factory=dict)
    """Our split -> the source's name for it, where they differ."""
    classes: tuple[str, ...] | None = None
    """Class names in order (default: sorted names found, or the data set's own)."""
    validation_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of train (by group) that becomes validation when the source has none."""
    split_seed: int = 0
    """Seed of that cut. It is the same in all runs, so that all arms and seeds see the same parts."""
    photos: Literal["resize", "crops"] = "resize"
    """BACH only: the whole photo resized as eva does, or 512 px crops of it."""
    unreadable: Literal["error", "quarantine"] = "error"
    """What to do with images that cannot be decoded."""
    mpp: float | None = Field(None, gt=0)
    """Micrometres per pixel when the source does not say."""
    labels: LabelsConfig = LabelsConfig()


class ReportsConfig(Section):
    """Where the reports are, and which snippets of them are kept."""

    path: str
    """File, folder, zip or Hugging Face id."""
    format: Literal["auto", "lines", "texts", "csv", "tsv", "jsonl", "parquet", "huggingface"] = "auto"
    """`lines`: one report per line; `texts`: a folder or zip of .txt files."""
    text_column: str = "text"
    id_column: str | None = None
    organ_column: str | None = None
    group_column: str | None = None
    encoding: str = "utf-8"
    split: str = "train"
    """Hugging Face only."""
    min_words: int = Field(3, ge=1)
    """Shorter snippets are dropped."""
    sections: tuple[str, ...] | None = None
    """Keep only these sections (lower case); None keeps all."""
    exclude_sections: tuple[str, ...] = ()
    include_terms: tuple[str, ...] = ()
    """Keep only snippets with at least one of these terms (whole words, any case); empty keeps all."""
    exclude_terms: tuple[str, ...] = ()
    """Drop snippets with one of these terms."""
    morphology_prompts: str | None = None
    """Prompt bag (YAML file or a packaged name) of what to keep ..."""
    boilerplate_prompts: str | None = None
    """... against one of what to drop; a snippet nearer to the second is dropped."""
    morphology_margin: float = 0.0
    """By how much the first similarity must exceed the second."""

    @model_validator(mode="after")
    def _both_bags(self) -> "ReportsConfig":
        if (self.morphology_prompts is None) != (self.boilerplate_prompts is None):
            raise ValueError("give both morphology_prompts and boilerplate_prompts, or neither")
        return self


class VLMConfig(Section):
    """The frozen vision-language model."""

    name: str = "embedded"
    """`embedded`, `open_clip:ARCH[/PRETRAINED]`, `hf-hub:ID`, `clip:ID` (transformers), or a local folder."""
    batch_size: int = Field(64, ge=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


class BackboneConfig(Section):
    """The student's vision trunk."""

    name: str = "embedded"
    """`embedded`, any timm name, `hf-hub:ID`, or a local folder in timm's format."""
    pretrained: bool = True
    tuning: Literal["lora", "frozen", "full"] = "lora"


class LoraConfig(Section):
    """Low-rank adaptation (arXiv 2106.09685) of the backbone."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    dropout: Share = 0.0
    """Each process draws its own units to drop: above 0, results depend on the number of processes."""
    targets: tuple[str, ...] = ("qkv", "projection", "mlp")
    """Kinds (qkv, projection, mlp, patch_embed) or names of modules of the backbone."""


class PairingConfig(Section):
    """How each tile finds its snippets."""

    k: int = Field(1, ge=1, le=100)
    """Snippets per tile."""
    centring: bool = True
    """Subtract each modality's mean before matching (after filtering)."""
    index: str = "Flat"
    """Key of faiss.index_factory; Flat is exact. IVF keys search `nprobe` of their lists per tile."""
    nprobe: int | None = Field(None, ge=1)
    """Lists searched by an IVF index; None: faiss' own, 1, which misses many nearest snippets."""
    backend: Literal["auto", "faiss", "torch"] = "auto"
    block: int = Field(4096, ge=1)
    """Tiles searched at once; bounds the memory."""

    @model_validator(mode="after")
    def _lists_to_search(self) -> "PairingConfig":
        if self.nprobe is not None and not has_lists(self.index):
            raise ValueError(f"nprobe belongs to an IVF index, not to index: {self.index}")
        return self


class StudentConfig(Section):
    """Heads over the backbone."""

    head: Literal["linear", "late_fusion"] = "linear"
    projector_layers: int = Field(1, ge=0, le=2)
    """0: no projector (image only). 2 needs late_fusion."""
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
    """What the projector is taught."""

    tiles: Literal["none", "labelled", "all"] = "all"
    """Which training tiles are distilled."""
    target: Literal["text", "shuffled_text", "image"] = "text"
    """The paired snippet's embedding, another tile's, or the VLM's embedding of the tile itself."""
    weight: float = Field(1.0, ge=0)
    """lambda of L = L_CE + lambda * L_KD."""
    word_drop: Share = 0.0
    """Share of each snippet's words left out of the target (pairs stay as they are)."""


class AugmentationConfig(Section):
    """Equal in all arms."""

    dihedral: bool = True
    """Flips and quarter turns."""
    stain: float = Field(0.1, ge=0)
    """Spread of the optical-density jitter (0: off)."""


class TrainingConfig(Section):
    """The optimisation."""

    steps: int = Field(1000, ge=1)
    """Optimiser updates."""
    tiles_per_step: int = Field(64, ge=1)
    """Over all processes, labelled and unlabelled together."""
    labelled_share: Share = 1 / 3
    """Share of labelled tiles in a batch when unlabelled ones are distilled, too."""
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    warmup: Share = 0.1
    """Share of the steps with a rising learning rate; a cosine follows."""
    label_smoothing: Share = 0.0
    clip_norm: float = Field(1.0, ge=0)
    """Largest gradient norm; 0: not clipped."""
    accumulation: int = Field(1, ge=1)
    """Micro-batches per step."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    evaluate_every: int = Field(100, ge=1)
    """Steps between two looks at the validation part."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many looks without a gain; None: never early."""
    monitor: Literal["accuracy", "balanced_accuracy", "macro_f1", "auroc"] = "balanced_accuracy"
    """Validation metric that chooses the checkpoint."""
    log_every: int = Field(10, ge=1)
    """Steps between two rows of metrics.jsonl."""
    checkpoint_every: int = Field(200, ge=1)
    """Steps between two resumable checkpoints."""
    threads: int = Field(0, ge=0)
    """Threads that read tiles ahead (0: one per core, at most 8)."""
    cache_tiles: Literal["auto", "memory", "none"] = "auto"
    """Keep resized tiles in memory; `auto` does when they take less than 2 GiB."""
    augmentation: AugmentationConfig = AugmentationConfig()


class EvaluationConfig(Section):
    """What is computed from the predictions."""

    splits: tuple[Literal["train", "validation", "test"], ...] = ("validation", "test")
    bootstrap: int = Field(1000, ge=0)
    """Resamples of the 95 % intervals; 0: none."""
    batch_size: int = Field(256, ge=1)


class ComparisonConfig(Section):
    """Which arms are compared, over which seeds, under which search."""

    arms: tuple[str, ...] = ("image_only", "clip_it_all", "shuffled_pairs", "image_embedding")
    baseline: str = "image_only"
    """The arm that differences are taken against."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Reported seeds: labels, initialisation and batches all depend on them."""
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "auroc"] = "accuracy"
    shifted: TilesConfig | None = None
    """A further test set (its test split counts), such as another centre."""
    learning_rates: tuple[float, ...] = Field((5e-4, 1e-3, 2e-3), min_length=1)
    """The search grid of scripts/tune.py, the same for every arm: learning rates ..."""
    steps: tuple[int, ...] = Field((150, 300), min_length=1)
    """... times steps."""
    tuning_seeds: tuple[int, ...] = Field((100, 101), min_length=1)
    """Seeds of the search; they are never reported."""

    @model_validator(mode="after")
    def _fair(self) -> "ComparisonConfig":
        if self.baseline not in self.arms:
            raise ValueError(f"the baseline {self.baseline!r} must be one of the arms")
        if set(self.seeds) & set(self.tuning_seeds):
            raise ValueError("seeds and tuning_seeds must not share a seed")
        return self


class TrackingConfig(Section):
    """Where the progress goes beside metrics.jsonl."""

    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    project: str = "clipit"
    wandb_mode: Literal["offline", "online", "disabled"] = "offline"


class Config(Section):
    """One run."""

    name: str = "run"
    """Name of the run; its folder is <output>/runs/<name>/<arm>-seed<seed>."""
    output: Path = Path("outputs")
    """Root of everything that is written."""
    seed: int = Field(0, ge=0)
    arm: str | None = None
    """A recipe of clipit/training/arms.py or of `arms` below; None: the keys of this file as they are."""
    tiles: TilesConfig
    reports: ReportsConfig | None = None
    prompts: str | None = None
    """Prompt set for zero-shot: YAML file or a packaged name."""
    vlm: VLMConfig = VLMConfig()
    backbone: BackboneConfig = BackboneConfig()
    lora: LoraConfig = LoraConfig()
    pairing: PairingConfig = PairingConfig()
    student: StudentConfig = StudentConfig()
    distillation: DistillationConfig = DistillationConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    comparison: ComparisonConfig = ComparisonConfig()
    arms: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """More recipes: name -> overrides by dotted key, `base` names a recipe to start from."""
    overrides: tuple[str, ...] = ()
    """Keys that were given on the command line, filled in by the program: they win over the arm's keys."""
    note: str = ""
    """Printed in every summary of the run."""

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not _PLAIN.fullmatch(name):
            raise ValueError("use letters, digits, '.', '_' and '-' only, and no '.' in front")
        return name

    @field_validator("arms")
    @classmethod
    def _plain_arms(cls, arms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in arms:
            cls._plain_name(name)  # it becomes part of a folder's name
        return arms
