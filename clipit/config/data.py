"""Configuration of what goes in: tiles and reports."""

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
    """Base of all sections: no unknown keys, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def check_once(values: tuple[Any, ...]) -> None:
    """Refuse an entry that stands in a list twice.

    Raises:
        ValueError: Which one does.
    """
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"given twice: {', '.join(twice)}; it would count twice")


def check_seeds(seeds: tuple[int, ...]) -> None:
    """Refuse seeds that stand there twice, or that no generator of random numbers takes.

    Raises:
        ValueError: Which ones.
    """
    check_once(seeds)
    if any(not 0 <= seed <= LARGEST_SEED for seed in seeds):
        raise ValueError(f"a seed is a whole number from 0 to {LARGEST_SEED}")


class LabelsConfig(Section):
    """Which training tiles keep their label; the others count as unlabelled."""

    kind: Literal["all", "none", "fraction", "per_class"] = "all"
    value: float = Field(1.0, gt=0)
    """Share of the labels (fraction) or number per class (per_class)."""
    validation: Literal["same", "all"] = "same"
    """`same`: the validation part keeps no more labels than training (they are labels, too)."""
    seed: int | None = Field(None, ge=0, le=LARGEST_SEED)
    """Chooses the labelled tiles; the run's seed when not given."""


class TilesConfig(Section):
    """Where the tiles are, and how they are split."""

    source: TileSource
    """`folders`, `table` or `huggingface` for your own tiles, or the name of a published data set (`data_cards/`)."""
    path: str
    """Folder, table file or Hugging Face id, as the source needs it."""
    check_counts: bool = True
    """Published data sets: other numbers of tiles than published are an error; false: a note (for a smaller copy)."""
    magnification: Literal["40X", "100X", "200X", "400X"] | None = None
    """BreakHis only: keep the tiles of one magnification; None: all four."""
    images: str | None = None
    """Table only: folder or zip that the table's paths are relative to (default: the table's folder)."""
    columns: dict[Literal["id", "path", "label", "split", "group", "mpp"], str] = Field(default_factory=dict)
    """Table and huggingface: our name -> the column's name, where they differ."""
    splits: dict[Literal["train", "validation", "test"], str] = Field(default_factory=dict)
    """Our split -> the source's name for it, where they differ; any column may say it, such as the centre."""
    other_parts: Literal["error", "ignore"] = "error"
    """Rows of parts that `splits` does not name (other centres), or of none: an error, or left out and counted."""
    classes: tuple[str, ...] | None = None
    """Class names in order (default: sorted names found, or the data set's own)."""
    class_map: dict[str, str] = Field(default_factory=dict)
    """The source's label -> our class; tiles of other labels are left out and counted. Empty: labels as they are."""
    validation_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of train (by group) that becomes validation when the source has none."""
    split_seed: int = Field(0, ge=0, le=LARGEST_SEED)
    """Seed of that cut. It is the same in all runs, so that all arms and seeds see the same parts."""
    photos: Literal["resize", "crops"] = "resize"
    """BACH only: the whole photo resized as eva does, or 512 px crops of it."""
    unreadable: Literal["error", "quarantine"] = "error"
    """What to do with images that cannot be decoded."""
    mpp: float | None = Field(None, gt=0)
    """Micrometres per pixel when the source does not say."""
    labels: LabelsConfig = LabelsConfig()

    @field_validator("source", mode="before")
    @classmethod
    def _known_source(cls, name: Any) -> Any:
        known = get_args(TileSource)
        if isinstance(name, str) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"no source of tiles is called so; {hint}there are: {', '.join(known)}")
        return name


class ReportsConfig(Section):
    """Where the reports are, and which snippets of them are kept."""

    path: Data[str]
    """File, folder, zip or Hugging Face id."""
    format: Data[Literal["auto", "lines", "texts", "csv", "tsv", "jsonl", "parquet", "huggingface", "tcga"]] = "auto"
    """`lines`: one report per line; `texts`: a folder or zip of .txt files; `tcga`: the csv of TCGA-Reports, or a
    folder or zip of .txt files named by TCGA barcode (the patient becomes the group)."""
    text_column: str = "text"
    id_column: str | None = None
    organ_column: str | None = None
    group_column: str | None = None
    label_column: Data[str | None] = None
    """A label of the whole report (diagnosis, grade, stage), for `distillation.target: report_labels`."""
    cancer_types: str | None = None
    """Format tcga: csv of patient_id and cancer_type, from which the organ follows."""
    organs: tuple[str, ...] = ()
    """Keep only reports of these organs; empty keeps all."""
    encoding: Data[str] = "utf-8"
    split: Data[str] = "train"
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
        if self.cancer_types is not None and self.format != "tcga":
            raise ValueError("cancer_types belongs to format: tcga")
        return self


class LeaksConfig(Section):
    """What is done about tiles, patients and reports that stand on both sides of a split."""

    policy: Literal["error", "exclude", "note", "off"] = "error"
    """`error` stops; `exclude` leaves out the tiles of the earlier part (never test tiles) and the reports, counts and
    lists them (of a shifted test set its own tiles); `note` only says so; `off` does not look."""
    pixels: Literal["off", "exact", "near"] = "exact"
    """Also compare the images: equal pixels (exact), and equal up to quarter turns, flips, size, compression and light
    (near). Costs one decoding of every image of every split, once per data set and output folder: minutes for 300,000
    small tiles with exact, two to three times as long with near. `off` saves it, and copies stay unseen."""
    distance: int = Field(7, ge=0, le=11)
    """Near: most different bits of the two 64-bit hashes ..."""
    similarity: float = Field(0.9, ge=-1, le=1)
    """... and least correlation of the two images at 16 x 16 grey pixels."""
    spread: float = Field(6.0, ge=0)
    """Near: tiles whose 16 x 16 grey pixels have a smaller standard deviation (of 255) are not compared; all empty
    background looks alike."""
