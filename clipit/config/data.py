"""Configuration of the data: tiles, labels, reports and leaks between splits."""

import difflib
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from clipit.config.effects import Data

Share = Annotated[float, Field(ge=0.0, le=1.0)]
LARGEST_SEED = 2**32 - 1  # the largest that NumPy takes

TileSource = Literal[
    "folders", "table", "huggingface",
    "pcam", "nct_crc", "bach", "pannuke", "digestpath", "wsss4luad", "kimia_path24c", "mhist",
    "lc25000", "lc25000_lung", "lc25000_colon", "breakhis", "breakhis_types", "kather2016", "sicapv2",
]  # fmt: skip
"""Sources for tiles of one's own, then the published data sets of `clipit/tiles/datasets.py` (a test compares)."""


class Section(BaseModel):
    """Base class of all sections: unknown keys are errors, and instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def check_once(values: tuple[Any, ...]) -> None:
    """Refuse repeated entries of a list.

    Raises:
        ValueError: Names the repeated entries.
    """
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"given twice: {', '.join(twice)}; it would count twice")


def check_seeds(seeds: tuple[int, ...]) -> None:
    """Refuse repeated seeds, and seeds that NumPy does not take.

    Raises:
        ValueError: Names the repeated seeds, or the range.
    """
    check_once(seeds)
    if any(not 0 <= seed <= LARGEST_SEED for seed in seeds):
        raise ValueError(f"a seed is a whole number from 0 to {LARGEST_SEED}")


class LabelsConfig(Section):
    """Labels that the run may use; the other training tiles count as unlabelled."""

    kind: Literal["all", "none", "fraction", "per_class"] = "all"
    """Labels to keep: all, none, a fraction of them, or a number per class."""
    value: float = Field(1.0, gt=0)
    """fraction: share of the labels; per_class: number per class."""
    validation: Literal["same", "all"] = "same"
    """Labels of the validation split; `same`: no more than the training split keeps, since they are labels too."""
    seed: int | None = Field(None, ge=0, le=LARGEST_SEED)
    """Seed that chooses the labelled tiles; null: the seed of the run."""


class TilesConfig(Section):
    """Tiles, their classes and their splits."""

    source: TileSource
    """`folders`, `table` or `huggingface` for your own tiles, or the name of a published data set (`data_cards/`)."""
    path: str
    """Folder, table file or Hugging Face id, as the source needs it."""
    check_counts: bool = True
    """Published data sets: fail if the numbers of tiles differ from the published ones; false: log them, for a smaller
    copy."""
    magnification: Literal["40X", "100X", "200X", "400X"] | None = None
    """BreakHis only: keep the tiles of one magnification; null: of all four."""
    images: str | None = None
    """Table only: folder or zip that the paths in the table are relative to; null: the folder of the table."""
    columns: dict[Literal["id", "path", "label", "split", "group", "mpp"], str] = Field(default_factory=dict)
    """table and huggingface: clipit's name -> name of the column, where they differ."""
    splits: dict[Literal["train", "validation", "test"], str] = Field(default_factory=dict)
    """Split -> its name in the source, where they differ; any column can define splits, such as the centre."""
    other_parts: Literal["error", "ignore"] = "error"
    """Rows whose split `splits` does not name, such as other centres, or that have none: fail, or drop and count
    them."""
    classes: tuple[str, ...] | None = None
    """Class names in order; null: those of the data set, or the sorted labels."""
    class_map: dict[str, str] = Field(default_factory=dict)
    """Label in the source -> class; tiles with other labels are dropped and counted. Empty: the labels are the
    classes."""
    validation_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of the training groups that becomes the validation split if the source has none."""
    split_seed: int = Field(0, ge=0, le=LARGEST_SEED)
    """Seed of that split, the same in all runs, so that all arms and seeds see the same splits."""
    photos: Literal["resize", "crops"] = "resize"
    """BACH only: resize the whole image as eva does, or cut it into crops of 512 px."""
    unreadable: Literal["error", "quarantine"] = "error"
    """Images that cannot be decoded: fail, or drop and list them."""
    mpp: float | None = Field(None, gt=0)
    """Micrometres per pixel, if the source does not state them."""
    labels: LabelsConfig = LabelsConfig()

    @field_validator("source", mode="before")
    @classmethod
    def _known_source(cls, name: Any) -> Any:
        known = get_args(TileSource)
        if isinstance(name, str) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown tile source {name!r}; {hint}known are: {', '.join(known)}")
        return name


class ReportsConfig(Section):
    """Reports, and the filter of their snippets."""

    path: Data[str]
    """File, folder, zip or Hugging Face id."""
    format: Data[Literal["auto", "lines", "texts", "csv", "tsv", "jsonl", "parquet", "huggingface", "tcga"]] = "auto"
    """`lines`: one report per line; `texts`: a folder or zip of .txt files; `tcga`: the csv of TCGA-Reports, or a
    folder or zip of .txt files named by TCGA barcode, whose patient becomes the group."""
    text_column: str = "text"
    """Column of the text."""
    id_column: str | None = None
    """Column of the report's id."""
    organ_column: str | None = None
    """Column of the organ."""
    group_column: str | None = None
    """Column of the patient or slide."""
    label_column: Data[str | None] = None
    """Column of a label of the whole report, such as the diagnosis, for `distillation.target: report_labels`."""
    cancer_types: str | None = None
    """tcga: csv with the columns patient_id and cancer_type, from which the organ follows."""
    organs: tuple[str, ...] = ()
    """Keep only reports of these organs; empty keeps all."""
    encoding: Data[str] = "utf-8"
    """Text encoding of the files."""
    split: Data[str] = "train"
    """huggingface: split of the data set."""
    min_words: int = Field(3, ge=1)
    """Drop snippets with fewer words."""
    sections: tuple[str, ...] | None = None
    """Keep only these sections, in lower case; null keeps all."""
    exclude_sections: tuple[str, ...] = ()
    """Drop these sections, in lower case."""
    include_terms: tuple[str, ...] = ()
    """Keep only snippets with at least one of these terms, as whole words in any case; empty keeps all."""
    exclude_terms: tuple[str, ...] = ()
    """Drop snippets with one of these terms."""
    morphology_prompts: str | None = None
    """Prompts for the snippets to keep: a YAML file or a packaged name."""
    boilerplate_prompts: str | None = None
    """Prompts for the snippets to drop; a snippet nearer to these than to `morphology_prompts` is dropped."""
    morphology_margin: float = 0.0
    """Margin by which the similarity to `morphology_prompts` must exceed the other."""

    @model_validator(mode="after")
    def _both_bags(self) -> "ReportsConfig":
        if (self.morphology_prompts is None) != (self.boilerplate_prompts is None):
            raise ValueError("give both morphology_prompts and boilerplate_prompts, or neither")
        if self.cancer_types is not None and self.format != "tcga":
            raise ValueError("cancer_types belongs to format: tcga")
        return self


class LeaksConfig(Section):
    """Tiles, patients and reports that occur on both sides of a split."""

    policy: Literal["error", "exclude", "note", "off"] = "error"
    """`error` fails; `exclude` drops and lists the reports and the tiles of the earlier split, never test tiles (of a
    shifted test set its own tiles); `note` only logs leaks; `off` does not check."""
    pixels: Literal["off", "exact", "near"] = "exact"
    """Comparison of images: equal pixels (exact), or also equal up to quarter turns, flips, size, compression and
    brightness (near). Every image is decoded once per data set and output folder: minutes for 300,000 small tiles with
    exact, two to three times as long with near."""
    distance: int = Field(7, ge=0, le=11)
    """near: largest number of different bits of the two 64-bit hashes."""
    similarity: float = Field(0.9, ge=-1, le=1)
    """near: smallest correlation of the two images at 16 x 16 grey pixels."""
    spread: float = Field(6.0, ge=0)
    """near: smallest standard deviation of the 16 x 16 grey pixels, of 255; tiles below it, such as empty background,
    are not compared."""
