"""Configuration of the adaptation of a VLM: examples, weights and training."""

from typing import Literal

from pydantic import Field, model_validator

from clipit.config.effects import AddedLater, Data, Evaluation, Recipe, Reporting, Speed
from clipit.config.paths import LocalPath
from clipit.config.run import LoraConfig
from clipit.config.section import MAX_SEED, Distinct, Section, Seeds
from clipit.config.training import AugmentationConfig

AdaptArm = Literal["text", "shuffled_text", "images"]


class PairsConfig(Section):
    """Image-text pairs."""

    source: Literal["table", "webdataset"] = "table"
    """A table with one row per image and text (an image may have several rows), or tar shards in the format of the
    webdataset package."""
    path: Data[LocalPath[str | None]] = None
    """Table file, or folder or pattern of tar shards (`shards/train-{000..123}.tar`)."""
    images: Data[LocalPath[str | None]] = None
    """`table`: folder or zip to which the paths in the table are relative; null: the folder of the table."""
    columns: dict[Literal["id", "path", "text", "group", "split", "mpp"], str] = Field(default_factory=dict)
    """Mapping from clipit's column names to those of the source, where they differ. For webdataset, `path` and `text`
    are suffixes of the samples' members, by default any image and `txt`; `text` may also be a key of their JSON."""
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Fraction of the groups (without groups: of the images) held out for validation if the source has no validation
    split."""
    split_seed: int = Field(0, ge=0, le=MAX_SEED)
    """Seed for drawing the held-out groups."""


class ContrastBagsConfig(Section):
    """Members of the bags, mined from the tile and text stores.

    The `reports`, `pairing` and `prompts` keys apply as in runs.
    """

    tiles: int = Field(3, ge=0, le=32)
    """Number of nearest training tiles in a tile bag, in addition to the tile itself."""
    snippets: int = Field(1, ge=0, le=32)
    """Number of paired snippets in a text bag; at most `pairing.k`."""
    prompts: int = Field(0, ge=0, le=32)
    """Number of nearest prompt-dictionary texts in a text bag."""
    whole_entries: AddedLater[bool] = False
    """Add all texts of the dictionary entries of the prompts in the bag, at most 12 per entry: term, rephrasings,
    findings and causes."""
    class_prompts: int = Field(0, ge=0, le=32)
    """Number of nearest class-prompt texts in a text bag (needs `prompts`)."""
    dictionary: Data[LocalPath[str]] = "histology"
    """Prompt dictionary: a YAML file or the name of a packaged dictionary."""
    margin: float | None = Field(None, ge=0)
    """Drop members whose similarity is lower than that of the best member of the same kind by more than this margin;
    null: keep all."""
    mine_every: int = Field(0, ge=0)
    """Number of steps after which the bags are mined again, with tiles and texts embedded by the adapted VLM; 0:
    never."""


class CasesConfig(Section):
    """Contrast of a patient's tiles with the snippets of the patient's own reports."""

    tiles: int = Field(1, ge=1, le=64)
    """Number of tiles in a tile bag, drawn from the patient's tiles."""
    snippets: int = Field(4, ge=1, le=64)
    """Number of snippets in a text bag, drawn from the patient's reports."""


class AdaptConfig(Section):
    """Adaptation of the VLM `vlm`: examples, weights, training, and the evaluation before and after.

    Used by `clipit adapt`, not by a run.
    """

    data: Literal["pairs", "bags", "cases"] = "cases"
    """Training examples. `pairs`: image-text pairs (`adapt.pairs`). `bags`: training tiles with their nearest tiles,
    snippets and prompts (`adapt.bags`). `cases`: training tiles with the reports of the same patients
    (`adapt.cases`). No tile labels are used."""
    pairs: PairsConfig = PairsConfig()
    bags: ContrastBagsConfig = ContrastBagsConfig()
    cases: CasesConfig = CasesConfig()
    tuning: Literal["lora", "full", "projection"] = "lora"
    """Weights that are trained: low-rank adapters, all, or only the projections into the joint space."""
    towers: Distinct[Literal["image", "text"]] = Field(("image", "text"), min_length=1)
    """Towers that are trained; the other tower keeps its weights."""
    lora: LoraConfig = LoraConfig()
    steps: int = Field(500, ge=1)
    """Optimiser steps."""
    batch_size: int = Field(256, ge=2)
    """Bags or pairs per step, over all processes; each is contrasted with all others."""
    micro_batch: Speed[int] = Field(32, ge=1)
    """Images or texts per forward pass of a process, which bounds memory use; the batch may be much larger, because
    gradients are cached at the embeddings (arXiv 2101.06983). With dropout, this key changes which values are
    dropped."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of AdamW, with warm-up and cosine decay to 0."""
    weight_decay: float = Field(1e-2, ge=0)
    """Weight decay of AdamW."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Fraction of the steps used for linear warm-up of the learning rate."""
    clip_norm: float = Field(1.0, ge=0)
    """Maximum gradient norm; gradients above it are clipped; 0: no clipping."""
    learn_temperature: bool = True
    """Train the VLM's logit scale, which is clamped between 1 and 100."""
    precision: Literal["auto", "no", "bf16"] = "auto"
    """Mixed precision; `auto`: bf16 on GPUs with native support, otherwise none."""
    augmentation: AugmentationConfig = AugmentationConfig()
    validate_every: int = Field(50, ge=1)
    """Steps between evaluations of the contrastive loss on the validation split."""
    keep: Literal["last", "best"] = "last"
    """Step whose weights are kept: the last, or the one with the lowest loss on the validation split."""
    log_every: Reporting[int] = Field(10, ge=1)
    """Steps between two rows of metrics.jsonl."""
    checkpoint_every: Reporting[int] = Field(100, ge=1)
    """Steps between checkpoints."""
    arms: Recipe[Distinct[AdaptArm]] = Field(("text", "shuffled_text", "images"), min_length=1)
    """Arms of the study. `text`: as configured. Controls: with `shuffled_text`, each bag gets the texts of another
    patient (without groups: of another image); with `images`, each image is contrasted with a second view of itself or
    with a different tile of its bag, and no text is used."""
    seeds: Recipe[Seeds] = (0,)
    """Seeds for the initialisation, the order of the examples and the augmentation."""
    forgetting: Evaluation[dict[str, dict[str, Data[LocalPath[str]]]]] = Field(default_factory=dict)
    """Additional test sets for zero-shot classification before and after the adaptation, to measure forgetting: name ->
    `config`, a configuration file with tiles and prompts."""

    def unused_keys(self) -> frozenset[str]:
        """Return the sections of the other kinds of examples and, unless LoRA is trained, `lora`."""
        other_kinds = {"pairs", "bags", "cases"} - {self.data}
        return frozenset(other_kinds if self.tuning == "lora" else {*other_kinds, "lora"})

    @property
    def needs_reports(self) -> bool:
        """Whether the examples contain text from reports, as cases and bags with snippets do."""
        return self.data == "cases" or (self.data == "bags" and self.bags.snippets > 0)

    @model_validator(mode="after")
    def _check_combination(self) -> "AdaptConfig":
        if self.data == "pairs" and self.pairs.path is None:
            raise ValueError("data=pairs requires pairs.path: a table or tar shards of image-text pairs")
        bags = self.bags
        if self.data == "bags" and not bags.snippets + bags.prompts + bags.class_prompts:
            raise ValueError("text bags would be empty: set bags.snippets, bags.prompts or bags.class_prompts")
        return self
