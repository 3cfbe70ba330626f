"""Configuration of a run. The docstring of each key is its entry in docs/configuration.md."""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from clipit.config.data import AnnotationsConfig, LabelsConfig, LeaksConfig, ReportsConfig, TilesConfig
from clipit.config.effects import Data, Evaluation, Recipe, Reporting, Speed
from clipit.config.paths import LocalPath
from clipit.config.section import MAX_SEED, Distinct, Section
from clipit.config.training import (
    AugmentationConfig,
    BagsConfig,
    ConsistencyConfig,
    DistillationConfig,
    OwnReportConfig,
    PromptBagsConfig,
    SoftLabelsConfig,
    StudentConfig,
    TrainingConfig,
)
from clipit.errors import counted

__all__ = [
    "AnnotationsConfig",
    "AugmentationConfig",
    "BagsConfig",
    "DistillationConfig",
    "EvaluationConfig",
    "LabelsConfig",
    "LeaksConfig",
    "OwnReportConfig",
    "ReportsConfig",
    "RunConfig",
    "Section",
    "SoftLabelsConfig",
    "StudentConfig",
    "TilesConfig",
    "TrainingConfig",
]

Correction = Literal["none", "csls", "inverted_softmax", "sinkhorn"]
"""Hubness corrections of `clipit/pairing/correction.py`."""
MAX_INPUT = 8192
"""Maximum edge length, in pixels, of the input of a student or classifier."""
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_MIN_RESAMPLES = 20  # of the bootstrap
_MAX_NAME_LENGTH = 200  # file systems allow 255, but an arm's steps and seed are appended


def has_lists(index: str) -> bool:
    """Return whether a faiss index string has an inverted file (IVF), in which `nprobe` lists are searched."""
    return re.search(r"(^|,)IVF\d", index) is not None


def has_graph(index: str) -> bool:
    """Return whether a faiss index string has a graph (HNSW, NSG), which is searched with `ef_search`."""
    return re.search(r"(HNSW|NSG)", index) is not None


class VLMConfig(Section):
    """The frozen vision-language model."""

    name: LocalPath[str] = "embedded"
    """`embedded` (the small VLM that ships with clipit), a known name such as `plip` or `conch` (`clipit doctor
    --models` lists them), `open_clip:ARCH/PRETRAINED`, `hf-hub:ID` (open_clip), `clip:ID` (transformers), a local
    folder, or `python:package.module:function` for your own function that returns `clipit.models.towers.Towers`."""
    path: Data[LocalPath[str | None]] = None
    """Local folder or checkpoint file of a model with a known name."""
    adapter: Data[LocalPath[str | None]] = None
    """Folder `adapter/` of an adaptation (`clipit adapt`); the adapter's weights are applied to this model."""
    trust_remote_code: bool = False
    """Allow a model to run Python code from its own repository, which KEEP requires. Read that code first."""
    quick_gelu: bool | None = None
    """open_clip models: compute GELU as x * sigmoid(1.702 x), as OpenAI's weights require; null: as in the model's own
    configuration."""
    batch_size: Speed[int] = Field(64, ge=1)
    """Tiles or texts per forward pass."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Floating-point format of the forward pass."""


class BackboneConfig(Section):
    """The student's vision backbone."""

    name: LocalPath[str] = "embedded"
    """`embedded` (the small backbone that ships with clipit), a known name such as `uni` or `kaiko-vitb16`, any timm
    name, `hf-hub:ID` (timm), `transformers:ID`, or a local folder in the format of timm or transformers."""
    path: Data[LocalPath[str | None]] = None
    """Local files of a model with a known name: a folder or, for timm models, a weights file."""
    pretrained: bool = True
    """Load pretrained weights; false: random weights."""
    pooling: Literal["default", "cls", "cls_mean"] = "default"
    """Features from tokens: the model's own pooling, the class token, or the class token concatenated with the mean of
    the patch tokens."""
    pixels: int | None = Field(None, ge=1, le=MAX_INPUT)
    """Input size of the student in pixels; null: the model's own. Vision transformers need a multiple of their patch
    size, and their position embeddings are resampled. The VLM keeps its own size."""
    trust_remote_code: bool = False
    """Allow a model to run Python code from its own repository, which a few transformers models require."""
    tuning: Literal["lora", "frozen", "full"] = "lora"
    """Weights that are trained: low-rank adapters, none, or all."""


class LoraConfig(Section):
    """Low-rank adaptation (arXiv 2106.09685) of the backbone or, in `adapt`, of the VLM."""

    rank: int = Field(8, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(16.0, gt=0)
    """Numerator of the adapters' scale, alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate before the adapters. Each process draws its own dropout masks, so with a rate above 0, results
    depend on the number of processes."""
    targets: tuple[str, ...] = ("qkv", "projection", "mlp")
    """Modules to adapt: kinds (qkv, projection, mlp, patch_embed, conv) or module names. The default adapts the kinds
    that exist, or all convolutions if none exists; `conv` selects all convolutions except grouped ones."""


class PairingConfig(Section):
    """Pairing of tiles with report snippets."""

    k: int = Field(1, ge=1, le=100)
    """Snippets per tile."""
    centring: bool = True
    """Subtract each modality's mean embedding before matching; the mean of the snippets is computed after filtering."""
    index: str = "Flat"
    """Index string for faiss.index_factory. Flat is exact; all others are approximate, and intended for corpora of more
    than ten million snippets. The summary of the pairs states the recall of an approximate index, measured on a sample
    of tiles that are also searched exactly."""
    candidates: int | None = Field(None, ge=1, le=65536)
    """Snippets per tile that an approximate index returns; their cosines are then computed exactly. Null: the smallest
    power of two that reaches a recall of 0.99 on a sample of the tiles, at most 1024."""
    nprobe: int | None = Field(None, ge=1)
    """Lists that an IVF index searches per tile; null: the smallest power of two that reaches a recall of 0.99 on a
    sample of the tiles. If these lists contain fewer than k snippets, more lists are searched."""
    ef_search: int | None = Field(None, ge=1)
    """Length of the candidate list in graph search (HNSW, NSG). Null: the smallest power of two that reaches a
    recall of 0.99 on a sample of the tiles; if the graph only serves to find the lists of an IVF index, the value of
    `nprobe`."""
    backend: Literal["auto", "faiss", "torch"] = "auto"
    """Search library. `torch` supports only Flat; `auto` selects faiss if it is installed. On a GPU, Flat is always
    searched with torch."""
    block: Speed[int] = Field(4096, ge=1)
    """Number of tiles per search call, which bounds memory use."""
    correction: Correction = "none"
    """Hubness correction: rank snippets by the cosine minus a bias for their similarity to all tiles (needs `index:
    Flat`)."""
    correction_neighbours: int = Field(10, ge=1)
    """`csls`: number of nearest tiles of a snippet; half of the snippet's mean cosine with them is subtracted."""
    correction_temperature: float = Field(0.05, gt=0)
    """`inverted_softmax` and `sinkhorn`: divisor of the cosines; smaller values correct more strongly."""
    correction_iterations: int = Field(10, ge=1)
    """`sinkhorn`: number of iterations; each takes as long as one to two searches."""
    threshold: float | None = Field(None, ge=-1, le=1)
    """Drop pairs whose cosine is below this value; some tiles may then have no pair."""
    margin: float | None = Field(None, ge=0)
    """Drop pairs whose score (the corrected cosine) does not exceed that of the tile's (k+1)-th snippet by this
    margin."""
    mutual: bool = False
    """Keep a pair only if the tile is among the snippet's `mutual_neighbours` nearest tiles (needs `index: Flat`)."""
    mutual_neighbours: int = Field(10, ge=1)
    """`mutual`: number of nearest tiles per snippet."""
    organs: tuple[str, ...] = ()
    """Pair only with snippets from reports of these organs (case-insensitive); empty: all organs (needs `index:
    Flat`)."""
    exclude_same_group: bool = False
    """Never pair a tile with a snippet that occurs only in reports of the tile's patient. Patients are matched as
    in the leak check. Needs `index: Flat`."""
    reports: Literal["any", "own", "own_then_any"] = "any"
    """Reports that supply a tile's snippets. `any`: those of any patient. `own`: only those of the tile's patient;
    tiles of patients without a report get no pair. `own_then_any`: those of the tile's patient if there are any,
    otherwise those of any patient. `own` and `own_then_any` need `index: Flat`."""
    score_temperature: float | None = Field(None, gt=0)
    """Weight a tile's snippets by softmax(cosine / temperature); null: equal weights."""

    def unused_keys(self) -> frozenset[str]:
        """Return the keys for approximate indexes that do not apply to this index."""
        applies = {
            "candidates": self.index != "Flat", "nprobe": has_lists(self.index), "ef_search": has_graph(self.index),
        }  # fmt: skip
        return frozenset(key for key, read in applies.items() if not read)

    @property
    def exact(self) -> bool:
        """Whether a rule needs the scores of all pairs of tiles and snippets, which only a Flat index computes."""
        rules = (self.correction != "none", self.mutual, self.organs, self.exclude_same_group, self.reports != "any")
        return any(rules)

    @model_validator(mode="after")
    def _check_index_keys(self) -> "PairingConfig":
        if self.nprobe is not None and not has_lists(self.index):
            raise ValueError(f"nprobe applies to IVF indexes, not to index={self.index}")
        if self.ef_search is not None and not has_graph(self.index):
            raise ValueError(f"ef_search applies to HNSW and NSG indexes, not to index={self.index}")
        if self.candidates is not None and self.index == "Flat":
            raise ValueError("candidates applies to approximate indexes; index=Flat computes all cosines")
        if self.candidates is not None and self.candidates < self.k:
            raise ValueError(f"candidates={self.candidates} is below k={self.k}, the number of snippets per tile")
        if self.exact and self.index != "Flat":
            raise ValueError(
                "correction, mutual, organs, exclude_same_group and reports need the scores of all snippets: use "
                f"index=Flat, not index={self.index}"
            )
        if self.reports != "any" and self.exclude_same_group:
            raise ValueError(
                "exclude_same_group would exclude the patients' own reports, but reports=own and reports=own_then_any "
                "require them"
            )
        return self


class TrackingConfig(Section):
    """Experiment tracking, in addition to metrics.jsonl."""

    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Experiment tracker used during training."""
    project: str = "clipit"
    """Name of the project in the tracker."""
    group: str = ""
    """Group of the run in wandb; empty: the name of the comparison or sweep, or of the run."""
    wandb_mode: Literal["offline", "online", "disabled"] = "offline"
    """Mode of wandb; offline keeps the records in local files."""


class EvaluationConfig(Section):
    """Evaluation of the trained classifier."""

    splits: Evaluation[Distinct[Literal["train", "validation", "test"]]] = Field(("validation", "test"), min_length=1)
    """Splits to score."""
    bootstrap: Evaluation[int] = Field(1000, ge=0)
    """Number of bootstrap resamples for the 95% intervals, at least 20; 0: no intervals."""
    batch_size: Speed[int] = Field(256, ge=1)
    """Tiles per forward pass."""
    page: Reporting[bool] = True
    """Whether to generate the plots and the page of the run (report.html). `clipit pages` can generate the page
    later."""

    @field_validator("bootstrap")
    @classmethod
    def _check_bootstrap(cls, resamples: int) -> int:
        if 0 < resamples < _MIN_RESAMPLES:
            raise ValueError(f"use at least {_MIN_RESAMPLES} resamples, or 0 for no intervals")
        return resamples


class RunConfig(Section):
    """A run: its inputs, its student, its training and its evaluation."""

    name: Reporting[str] = "run"
    """Name of the run; its folder is `<output>/runs/<name>/<arm>-seed<seed>`."""
    output: Reporting[LocalPath[Path]] = Path("outputs")
    """Folder of all outputs."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Seed for the choice of labels to keep, the initialisation, the batches and the augmentation."""
    arm: Recipe[str | None] = None
    """Name of a recipe in clipit/training/arms.py or in `arms`; null: only the keys of this file."""
    tiles: TilesConfig
    reports: ReportsConfig | None = None
    leaks: Data[LeaksConfig] = LeaksConfig()
    prompts: Data[LocalPath[str | None]] = None
    """Prompt set of the classes for zero-shot classification: a file or the name of a packaged set."""
    vlm: VLMConfig = VLMConfig()
    second_vlm: VLMConfig | None = None
    """Second teacher in addition to `vlm`, with its own stores, pairs and projector; zero-shot classification uses
    `vlm`."""
    backbone: BackboneConfig = BackboneConfig()
    lora: LoraConfig = LoraConfig()
    pairing: PairingConfig = PairingConfig()
    student: StudentConfig = StudentConfig()
    distillation: DistillationConfig = DistillationConfig()
    bags: BagsConfig = BagsConfig()
    prompt_bags: PromptBagsConfig = PromptBagsConfig()
    soft_labels: SoftLabelsConfig = SoftLabelsConfig()
    own_report: OwnReportConfig = OwnReportConfig()
    consistency: ConsistencyConfig = ConsistencyConfig()
    terms: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Additional loss terms: name -> `class: package.module:Class` and the keys of that class."""
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: Reporting[TrackingConfig] = TrackingConfig()
    arms: Recipe[dict[str, dict[str, Any]]] = Field(default_factory=dict)
    """Additional recipes: name -> dotted keys with their values; `base` names the recipe to extend."""
    overrides: Recipe[tuple[str, ...]] = ()
    """Keys given on the command line; they take precedence over the keys of the arm or condition. Set by clipit."""
    note: Reporting[str] = ""
    """Text printed in every summary of the run."""

    def unused_keys(self) -> frozenset[str]:
        """Return `own_report` and, unless LoRA tunes the backbone, `lora`; loss terms may read both (`Term.reads`)."""
        return frozenset(("own_report",) if self.backbone.tuning == "lora" else ("own_report", "lora"))

    def for_second_vlm(self) -> "RunConfig":
        """Return the configuration with the second VLM, if there is one, instead of the first."""
        return self.model_copy(update={"vlm": self.second_vlm or self.vlm, "second_vlm": None})

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not _PLAIN.fullmatch(name):
            raise ValueError("use only letters, digits, '.', '_' and '-', and no leading '.'")
        if len(name) > _MAX_NAME_LENGTH:
            raise ValueError(
                f"too long ({counted(len(name), 'character')}): a folder name can have at most {_MAX_NAME_LENGTH}"
            )
        return name

    @field_validator("arms")
    @classmethod
    def _check_arms(cls, arms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in arms:
            cls._check_name(name)  # it becomes part of a folder name
        return arms
