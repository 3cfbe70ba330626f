"""The configuration of a run: one YAML file, overridden on the command line (`--lora.rank=8`).

Unknown keys are errors, and all errors are reported together. The meaning and the unit of each key
stand here and nowhere else; `docs/configuration.md` is made from these descriptions.
"""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from clipit.config.data import LARGEST_SEED, LabelsConfig, LeaksConfig, ReportsConfig, Section, TilesConfig
from clipit.config.effects import Data, Recipe, Reporting, Speed
from clipit.config.evaluation import EvaluationConfig
from clipit.config.training import (
    AugmentationConfig,
    BagsConfig,
    ConsistencyConfig,
    DistillationConfig,
    PromptBagsConfig,
    SoftLabelsConfig,
    StudentConfig,
    TrainingConfig,
)

__all__ = [
    "AugmentationConfig",
    "BagsConfig",
    "DistillationConfig",
    "EvaluationConfig",
    "LabelsConfig",
    "LeaksConfig",
    "ReportsConfig",
    "RunConfig",
    "Section",
    "SoftLabelsConfig",
    "StudentConfig",
    "TilesConfig",
    "TrainingConfig",
]

_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_LONGEST_NAME = 200  # a file system takes 255; an arm's steps and seed come behind


def has_lists(index: str) -> bool:
    """Whether a key of faiss.index_factory makes an inverted file (IVF), of which `nprobe` lists are searched."""
    return re.search(r"(^|,)IVF\d", index) is not None


class VLMConfig(Section):
    """The frozen vision-language model."""

    name: str = "embedded"
    """`embedded`, a name of the table (`plip`, `conch`, ...: scripts/doctor.py --models), `open_clip:ARCH/PRETRAINED`,
    `hf-hub:ID` (open_clip), `clip:ID` (transformers), or a local folder."""
    path: str | None = None
    """Local folder or checkpoint file of a model named from the table: the name's rules apply to these files."""
    trust_remote_code: bool = False
    """Let a model run Python code of its own repository (KEEP needs it). Read that code first."""
    quick_gelu: bool | None = None
    """open_clip models: compute x * sigmoid(1.702 x), with which OpenAI's weights were trained, for GELU (true), or
    do not (false); null: as the model's own configuration or the table says."""
    batch_size: Speed[int] = Field(64, ge=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


class BackboneConfig(Section):
    """The student's vision trunk."""

    name: str = "embedded"
    """`embedded`, a name of the table (`uni`, `kaiko-vitb16`, ...), any timm name, `hf-hub:ID` (timm),
    `transformers:ID`, or a local folder in the format of timm or transformers."""
    path: str | None = None
    """Local files of a named model: a folder, or for timm models one file of weights; the name's rules apply."""
    pretrained: bool = True
    pooling: Literal["default", "cls", "cls_mean"] = "default"
    """From tokens to features: the model's own, the class token, or the class token beside the patches' mean."""
    pixels: int | None = Field(None, ge=1)
    """Edge at which the student reads its tiles, pixels; None: the model's own. Transformers need a multiple of their
    patch (position embeddings are resampled), convolutional networks do not. The VLM keeps its own size."""
    trust_remote_code: bool = False
    """Run Python code from the model's own page, which a few transformers models need."""
    tuning: Literal["lora", "frozen", "full"] = "lora"


class LoraConfig(Section):
    """Low-rank adaptation (arXiv 2106.09685) of the backbone."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
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
    block: Speed[int] = Field(4096, ge=1)
    """Tiles searched at once; bounds the memory."""
    correction: Literal["none", "csls", "inverted_softmax", "sinkhorn"] = "none"
    """Hubness: rank snippets by cosine minus how near they are to all tiles (needs index: Flat)."""
    correction_neighbours: int = Field(10, ge=1)
    """csls: a snippet's nearest tiles whose mean cosine (halved) is subtracted."""
    correction_temperature: float = Field(0.05, gt=0)
    """inverted_softmax and sinkhorn: cosines are divided by it; the smaller, the harder."""
    correction_iterations: int = Field(10, ge=1)
    """sinkhorn: rounds of balancing; each costs between one and two searches."""
    threshold: float | None = Field(None, ge=-1, le=1)
    """A pair with a lower cosine is dropped; a tile may end up without a pair."""
    margin: float | None = Field(None, ge=0)
    """Drop pairs that do not exceed the tile's best snippet outside its bag, the (k+1)-th, by this much
    (in the score that ranks: the cosine, less the correction)."""
    mutual: bool = False
    """Keep a pair only if the tile is among the snippet's `mutual_neighbours` nearest tiles (needs index: Flat)."""
    mutual_neighbours: int = Field(10, ge=1)
    organs: tuple[str, ...] = ()
    """Only snippets from reports of these organs (any case); empty: of all (needs index: Flat)."""
    exclude_same_group: bool = False
    """A tile never gets a snippet that only reports of its own group hold (needs index: Flat)."""
    score_temperature: float | None = Field(None, gt=0)
    """Weights of a tile's snippets: softmax of cosine / temperature; None: all equal."""

    @property
    def exact(self) -> bool:
        """Whether a rule needs the score of every tile with every snippet, which only a Flat index stands for."""
        return self.correction != "none" or self.mutual or bool(self.organs) or self.exclude_same_group

    @model_validator(mode="after")
    def _lists_to_search(self) -> "PairingConfig":
        if self.nprobe is not None and not has_lists(self.index):
            raise ValueError(f"nprobe belongs to an IVF index, not to index: {self.index}")
        if self.exact and self.index != "Flat":
            raise ValueError(
                "correction, mutual, organs and exclude_same_group look at all scores: they need index: Flat, "
                f"not index: {self.index}"
            )
        return self


class TrackingConfig(Section):
    """Where the progress goes beside metrics.jsonl."""

    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    project: str = "clipit"
    wandb_mode: Literal["offline", "online", "disabled"] = "offline"


class RunConfig(Section):
    """One run."""

    name: Reporting[str] = "run"
    """Name of the run; its folder is <output>/runs/<name>/<arm>-seed<seed>."""
    output: Reporting[Path] = Path("outputs")
    """Root of everything that is written."""
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    arm: Recipe[str | None] = None
    """A recipe of clipit/training/arms.py or of `arms` below; None: the keys of this file as they are."""
    tiles: TilesConfig
    reports: ReportsConfig | None = None
    leaks: Data[LeaksConfig] = LeaksConfig()
    prompts: str | None = None
    """Prompt set for zero-shot: YAML file or a packaged name."""
    vlm: VLMConfig = VLMConfig()
    second_vlm: VLMConfig | None = None
    """Another teacher beside `vlm`, with stores, pairs and a projector of its own; zero-shot questions go to `vlm`."""
    backbone: BackboneConfig = BackboneConfig()
    lora: LoraConfig = LoraConfig()
    pairing: PairingConfig = PairingConfig()
    student: StudentConfig = StudentConfig()
    distillation: DistillationConfig = DistillationConfig()
    bags: BagsConfig = BagsConfig()
    prompt_bags: PromptBagsConfig = PromptBagsConfig()
    soft_labels: SoftLabelsConfig = SoftLabelsConfig()
    consistency: ConsistencyConfig = ConsistencyConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: Reporting[TrackingConfig] = TrackingConfig()
    arms: Recipe[dict[str, dict[str, Any]]] = Field(default_factory=dict)
    """More recipes: name -> overrides by dotted key, `base` names a recipe to start from."""
    overrides: Recipe[tuple[str, ...]] = ()
    """Keys that were given on the command line, filled in by the program: they win over the arm's keys."""
    note: Reporting[str] = ""
    """Printed in every summary of the run."""

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not _PLAIN.fullmatch(name):
            raise ValueError("use letters, digits, '.', '_' and '-' only, and no '.' in front")
        if len(name) > _LONGEST_NAME:
            raise ValueError(f"{len(name)} characters; a folder is called so: at most {_LONGEST_NAME}")
        return name

    @field_validator("arms")
    @classmethod
    def _plain_arms(cls, arms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in arms:
            cls._plain_name(name)  # it becomes part of a folder's name
        return arms
