"""Configuration of what goes in: tiles and reports."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]


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
