"""The configuration of a run: one YAML file, overridden on the command line (`--lora.rank=8`).

Unknown keys are errors, and all errors are reported together. The meaning and the unit of each key
stand here and nowhere else; `docs/configuration.md` is made from these descriptions.
"""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from clipit.config_data import LabelsConfig, ReportsConfig, Section, Share, TilesConfig
from clipit.config_evaluation import ComparisonConfig, EvaluationConfig

__all__ = [
    "ComparisonConfig",
    "Config",
    "EvaluationConfig",
    "LabelsConfig",
    "ReportsConfig",
    "Section",
    "TilesConfig",
]

_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


def has_lists(index: str) -> bool:
    """Whether a key of faiss.index_factory makes an inverted file (IVF), of which `nprobe` lists are searched."""
    return re.search(r"(^|,)IVF\d", index) is not None


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
