"""Configuration of the data: tiles, labels, reports and leakage between splits."""

import difflib
import re
from collections import Counter
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from clipit.config.effects import AddedLater, Data, Reporting, Results
from clipit.config.paths import LocalPath
from clipit.config.section import MAX_SEED, MicrometresPerPixel, Section, check_once, check_one_line

_MARK = r"['\"`\u2018\u2019\u201c\u201d]"
_QUOTED = re.compile(rf"\s*[bu]?\\?{_MARK}.*{_MARK}\s*", re.DOTALL)
"""Text in quotation marks, which may be typographic, or follow a backslash or the b of Python's bytes."""

MAX_VOTES = 999_999
"""Maximum number of votes per tile and class in an annotation table."""

TileSource = Literal[
    "folders", "table", "huggingface", "webdataset", "slides",
    "pcam", "nct_crc", "bach", "pannuke", "digestpath", "wsss4luad", "kimia_path24c", "mhist",
    "lc25000", "lc25000_lung", "lc25000_colon", "breakhis", "breakhis_types", "kather2016", "sicapv2",
]  # fmt: skip
"""Sources for custom tiles, then the published data sets; a test checks them against `clipit/tiles/datasets.py`."""


class LabelsConfig(Section):
    """Labels that the run may use; all other training tiles are treated as unlabelled."""

    kind: Literal["all", "none", "fraction", "per_class"] = "all"
    """Labels to keep: all, none, a fraction of them, or a number per class."""
    value: float = Field(1.0, gt=0)
    """Fraction of the labels (`fraction`), or number of labels per class (`per_class`)."""
    validation: Literal["same", "all"] = "same"
    """Labels to keep in the validation split. `same`: the limit of the training split also applies, because validation
    tiles must also be annotated. `all`: all labels."""
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    """Seed for drawing the labelled tiles; null: the seed of the run."""

    def unused_keys(self) -> frozenset[str]:
        """Return the keys that have no effect because all labels, or none, are kept."""
        if self.kind == "none":
            return frozenset({"value", "validation", "seed"})
        if self.kind != "all":
            return frozenset()
        return frozenset({"value", "seed"} if self.validation == "all" else {"value"})


class SlidesConfig(Section):
    """Tiles of whole-slide images: their resolution and size, and what counts as tissue."""

    mpp: MicrometresPerPixel = 0.5
    """Resolution of the tiles in micrometres per pixel."""
    pixels: int = Field(224, ge=16)
    """Edge length of a tile in pixels at this resolution."""
    overlap: float = Field(0.0, ge=0, lt=1)
    """Overlap of adjacent tiles as a fraction of their edge length; 0: none."""
    min_tissue: float = Field(0.5, ge=0, le=1)
    """Minimum fraction of tissue in a tile; 0 keeps every tile."""
    contours: LocalPath[str | None] = None
    """GeoJSON file with tissue contours, as written by QuPath and TRIDENT, or a folder with one such file per slide,
    named after the slide or its file; null: tissue is detected by colour."""
    tiles_per_slide: int | None = Field(None, ge=1)
    """Number of tiles to draw from each slide, at random but reproducibly; null: all."""
    grids: LocalPath[str] = "outputs/slide_grids"
    """Folder in which the tissue contours and the grid of each slide are cached."""


class AnnotationsConfig(Section):
    """Tile labels from several annotators, used instead of the labels of the source."""

    path: LocalPath[str]
    """Table (csv or tsv) with one row per tile and annotator or, with `counts`, one row of votes per tile."""
    columns: dict[Literal["tile", "annotator", "label"], str] = Field(default_factory=dict)
    """Mapping from clipit's column names to those of the table, where they differ; `tile` is the id of the tile."""
    counts: dict[str, str] = Field(default_factory=dict)
    """For votes without annotator names: mapping from each class to the column with its number of votes, such as
    `{SSA: "Number of Annotators who Selected SSA (Out of 7)"}`. Empty: one row per tile and annotator."""
    voters: int | None = Field(None, ge=1, le=MAX_VOTES)
    """With `counts`: total number of votes per tile; votes missing from the columns of `counts` are assigned to
    `rest`."""
    rest: str | None = None
    """With `voters`: name of the class that has no column in `counts`."""
    labels: Results[Literal["majority", "consensus", "posterior", "annotator"]] = "consensus"
    """Labels of training and validation tiles. `majority`: the most frequent label. `consensus`: the most probable
    class under the Dawid-Skene model. `posterior`: the class probabilities of that model, as soft targets (needs
    `soft_labels.source: annotators`). `annotator`: the labels of one annotator."""
    annotator: Results[str | None] = None
    """`annotator` only: name of the annotator; null: the most accurate annotator under the Dawid-Skene model, among
    those who labelled at least half as many tiles as the most active one."""
    test_annotators: Results[tuple[str, ...]] = ()
    """Annotators whose consensus is used as the test labels; their labels for other tiles are not used. Empty: all
    annotators, whose labels for other tiles are used as well. Results and pages state whether the test labels are
    independent of the training labels."""
    test_labels: Results[Literal["consensus", "source"]] = "consensus"
    """Labels of test tiles: the annotators' consensus, or the labels of the source, such as a reference standard."""
    source_annotators: Reporting[Literal["same", "others", "unknown"]] = "unknown"
    """Annotators who labelled the source: those of this table, others, or unknown. This key determines whether results
    and pages describe the source's test labels as independent of the training labels. MHIST: `same`, unless set to
    `others`."""

    @field_validator("columns", "counts", mode="before")
    @classmethod
    def _check_names(cls, names: Any) -> Any:
        if isinstance(names, dict):
            wrong = [name for pair in names.items() for name in pair if not isinstance(name, str)]
            if wrong:
                raise ValueError(f"names must be text, not {', '.join(map(str, wrong))}; write them in quotes")
        return names

    @model_validator(mode="after")
    def _check_annotators(self) -> "AnnotationsConfig":
        check_once(self.test_annotators)
        if self.annotator is not None and self.labels != "annotator":
            raise ValueError("annotator requires labels=annotator")
        if self.annotator is not None and self.annotator in self.test_annotators:
            raise ValueError(
                f"{self.annotator!r} labels the test tiles (test_annotators) and cannot also label training tiles"
            )
        if (self.voters is None) != (self.rest is None) or (self.rest is not None and not self.counts):
            raise ValueError("set voters and rest together, and only with counts")
        if self.rest is not None and self.rest in self.counts:
            raise ValueError(f"{self.rest!r} has a column in counts, so it cannot also be rest")
        used = Counter([*self.counts.values(), self.columns.get("tile", "tile")] if self.counts else [])
        twice = [name for name, count in used.items() if count > 1]
        if twice:
            raise ValueError(f"each class in counts needs a separate column; named more than once: {', '.join(twice)}")
        if self.counts and (self.labels == "annotator" or self.test_annotators or {*self.columns} - {"tile"}):
            raise ValueError(
                "votes in counts have no annotator names: remove `labels: annotator`, `test_annotators`, and all of "
                "`columns` except `tile`"
            )
        return self


class TilesConfig(Section):
    """Tiles, their classes and their splits."""

    source: TileSource
    """`folders`, `table`, `huggingface` or `webdataset` for your own tiles, `slides` for whole-slide images, or the
    name of a published data set (`data_cards/`)."""
    path: Data[LocalPath[str]]
    """Folder or zip of class folders, table file, folder or table of slides, data set on the Hugging Face Hub
    (`hf:owner/name`), or folder or pattern of tar shards (`shards/train-{000..123}.tar`), depending on the source."""
    streaming: Data[bool] = False
    """`huggingface` and `webdataset`: read the data set once, in order, and store its tiles in the output folder, so
    that the originals need not be on this disk."""
    keep_pixels: Data[int | None] = Field(None, ge=16)
    """With `streaming`: maximum length of the shorter edge in pixels; larger tiles are resized to it. Null: the largest
    input size of the VLMs and the backbone, if these sizes are known before the models are loaded."""
    keep_quality: Data[int | None] = Field(95, ge=1, le=100)
    """With `streaming`: JPEG quality of resized tiles; null: lossless PNG. Other tiles are copied byte for byte."""
    check_counts: bool = True
    """Published data sets: fail if the number of tiles differs from the published number; false: only log the
    difference, for partial copies."""
    magnification: Literal["40X", "100X", "200X", "400X"] | None = None
    """BreakHis only: keep the tiles of one magnification; null keeps all four."""
    images: Data[LocalPath[str | None]] = None
    """`table` and `slides`: folder (or, for tiles, zip) to which the paths in the table are relative; null: the folder
    of the table."""
    columns: dict[Literal["id", "path", "label", "split", "group", "mpp", "mask"], str] = Field(default_factory=dict)
    """`table`, `huggingface`, `webdataset` and `slides`: mapping from clipit's column names to those of the source,
    where they differ. For slides, `path` is the slide file (by default the column `path`) and `id` the name of the
    slide (by default the column `slide`). For webdataset, `path` is the suffix of the images, such as `img.png`; the
    other names are keys of the samples' JSON or suffixes of their text members. `mask` (`table` and `slides`) is the
    mask file, in the folder or zip of the images."""
    group_pattern: Data[str | None] = None
    """For sources without groups: regular expression that finds the patient or slide in the id of a tile or, failing
    that, in its path, such as `patient_\\d+`. If the expression has capturing groups, only the text of the first one
    is used. Null: only TCGA barcodes are recognised."""
    splits: dict[Literal["train", "validation", "test"], str | tuple[str, ...]] = Field(default_factory=dict)
    """Mapping from splits to their names in the source, where they differ; a list merges several names, as in
    `{train: [labelled, unlabelled]}`, and `""` stands for rows without a split. Any column can define the splits, such
    as the centre."""
    other_parts: Literal["error", "ignore"] = "error"
    """Rows without a split, or with a split that is not in `splits` (such as other centres): fail, or drop and count
    them. For Hugging Face data sets with `splits`, such splits are always dropped with a note."""
    classes: tuple[str, ...] | None = None
    """Class names in order; null: the classes of the data set, or the sorted labels."""
    class_map: dict[str, str] = Field(default_factory=dict)
    """Mapping from labels in the source to classes; tiles with other labels are dropped and counted. Empty: the labels
    are the classes."""
    validation_fraction: float = Field(0.2, gt=0, lt=1)
    """Fraction of the training groups held out as the validation split if the source has no validation split."""
    test_fraction: Data[float | None] = Field(None, gt=0, lt=1)
    """Fraction of the training groups held out as the test split if the source has no test split. The groups are drawn
    stratified by class. Null: no test split or, for a published data set, the share defined for it."""
    folds: Data[int | None] = Field(None, ge=2)
    """Number of folds into which a source without a test split is divided by group, stratified by class; `fold` is the
    test split, so that each tile is tested in exactly one fold."""
    fold: Data[int] = Field(0, ge=0)
    """Fold used as the test split, from 0 to `folds` - 1; to run all folds, use `comparison.data_sets`."""
    split_seed: int = Field(0, ge=0, le=MAX_SEED)
    """Seed for the held-out splits and the folds; independent of the run's seed, so that all arms and seeds have the
    same splits."""
    photos: Literal["resize", "crops"] = "resize"
    """BACH only: resize the whole image, as the eva benchmark does, or cut it into 512 px crops."""
    unreadable: Literal["error", "quarantine"] = "error"
    """Images that cannot be decoded, and links to images that do not exist: fail, or drop and list them."""
    mpp: MicrometresPerPixel | None = None
    """Resolution, in micrometres per pixel, of tiles whose source does not state it. `slides`: resolution of the finest
    level, for slides without this metadata."""
    slides: Data[SlidesConfig | None] = None
    """`slides` only: how the slides are tiled; null: the defaults of this section."""
    labels: LabelsConfig = LabelsConfig()
    annotations: Data[AnnotationsConfig | None] = None
    """Tile labels from several annotators; null: the labels of the source."""

    @field_validator("classes", "class_map", "splits", "columns", mode="before")
    @classmethod
    def _check_quotes(cls, value: Any) -> Any:
        """Reject names that YAML reads as numbers, booleans, dates or null."""
        names: list[Any] = list(value) if isinstance(value, list | tuple | dict) else []
        for inner in value.values() if isinstance(value, dict) else ():
            names += inner if isinstance(inner, list | tuple) else [inner]
        wrong = [name for name in names if not isinstance(name, str)]
        if wrong:
            listed = ", ".join({"None": "null", "True": "true", "False": "false"}.get(str(w), str(w)) for w in wrong)
            raise ValueError(f"names must be text, not {listed}; write them in quotes, such as '0'")
        return value

    @field_validator("classes", "class_map")
    @classmethod
    def _check_names(cls, names: tuple[str, ...] | dict[str, str] | None) -> tuple[str, ...] | dict[str, str] | None:
        check_one_line(names.values() if isinstance(names, dict) else names or ())
        return names

    @field_validator("splits")
    @classmethod
    def _check_lists(cls, splits: dict[str, Any]) -> dict[str, Any]:
        empty = sorted(split for split, names in splits.items() if names == ())
        if empty:
            raise ValueError(f"empty list for {', '.join(empty)}; write at least one name, or omit the split")
        return splits

    @field_validator("group_pattern")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a valid regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _check_folds(self) -> "TilesConfig":
        if self.folds is None and self.fold:
            raise ValueError("fold requires the key folds (the number of folds)")
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"no fold {self.fold}: the {self.folds} folds are numbered from 0 to {self.folds - 1}")
        if self.folds is not None and self.test_fraction is not None:
            raise ValueError("set folds or test_fraction, not both")
        return self

    @field_validator("source", mode="before")
    @classmethod
    def _check_source(cls, name: Any) -> Any:
        known = get_args(TileSource)
        if isinstance(name, str) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown tile source {name!r}; {hint}choose from: {', '.join(known)}")
        return name


class TextChecksConfig(Section):
    """Repairs and checks of the report text, applied before the filters."""

    ligatures: bool = True
    """Repair words in which a ligature was misread as a different character ("intesFnal"), if exactly one word of the
    corpus matches."""
    page_lines: AddedLater[bool] = True
    """Drop page numbers ("Page 2 of 3") and the headers and footers that repeat at page breaks; they would split
    sentences."""
    headings: bool = True
    """Drop snippets that consist only of a heading or a field label."""
    readable: float = Field(0.5, ge=0, le=1)
    """Minimum fraction of a snippet's letters that belong to readable words; snippets below it are dropped. 0 keeps
    all."""
    short_diagnoses: bool = True
    """Keep short snippets that name a diagnosis, such as "Adenocarcinoma", despite `min_words` and the prompt filter.
    With the packaged `morphology_prompts`, diagnoses of up to six words are also kept, such as "Partially mucinous
    colorectal adenocarcinoma", unless they are negated or uncertain."""
    section_weight: float = Field(0.5, ge=0)
    """Weight of a snippet's section in the prompt filter, in standard deviations of the similarity: added for
    microscopic descriptions and diagnoses, subtracted for gross descriptions, clinical data, specimens, blocks, stages
    and administrative text."""


ReportFormat = Literal[
    "auto", "lines", "texts", "csv", "tsv", "xlsx", "jsonl", "parquet", "huggingface", "tcga"
]  # fmt: skip


class ReportsConfig(Section):
    """Pathology reports, and filters for their snippets."""

    path: Data[LocalPath[str]]
    """File, folder, zip, or data set on the Hugging Face Hub (`hf:owner/name`)."""
    format: Data[ReportFormat] = "auto"
    """`lines`: one report per line. `texts`: a folder or zip of .txt files. `tcga`: the CSV file of TCGA-Reports, or a
    folder or zip of .txt files named by TCGA barcode; the patient in the barcode becomes the group."""
    columns: Data[tuple[str, ...]] = ()
    """Names of all columns, in order, for a csv, tsv or xlsx file without a header row; empty: the first row is the
    header."""
    sheet: Data[str | None] = None
    """Sheet of an xlsx file; null: the only sheet that is not empty."""
    text_column: str = "text"
    """Column with the report text."""
    id_column: str | None = None
    """Column with the report id."""
    organ_column: str | None = None
    """Column with the organ."""
    group_column: str | None = None
    """Column with the patient or slide, used as the group."""
    label_column: Data[str | None] = None
    """Column with a report-level label, such as the diagnosis; used by `distillation.target: report_labels` and
    `own_report`."""
    date_column: Data[str | None] = None
    """Column with the report date (ISO 8601, such as 2024-05-31); used by `own_report.several`."""
    metadata: Data[LocalPath[str | None]] = None
    """Additional table (csv, tsv or xlsx) with one row per report or per patient. The configured columns for organ,
    group, label and date are read from this table if it contains them. If it has no value for a report, the
    report's own value is used."""
    metadata_id_column: Data[str | None] = None
    """Column of `metadata` with report ids; null: `report_id`, if it exists."""
    metadata_group_column: Data[str | None] = None
    """Column of `metadata` with patients; null: `group`, or the only column that contains TCGA barcodes."""
    metadata_sheet: Data[str | None] = None
    """Sheet of `metadata`, if it is an xlsx file; null: the only sheet that is not empty."""
    tcga_barcodes: Data[bool] = True
    """Recognise TCGA barcodes in ids, file names and table cells, whatever the `format`. The patient becomes the group
    of reports without a group. The organ is inferred from `cancer_types` or, for patients not in that table, from a
    TCGA project code in the same places."""
    cancer_types: Data[LocalPath[str | None]] = None
    """CSV file with the columns patient_id and cancer_type; it determines the organs of TCGA patients."""
    organs: tuple[str, ...] = ()
    """Keep only reports of these organs (case-insensitive); empty keeps all."""
    encoding: Data[str] = "utf-8"
    """Text encoding of files without a byte order mark; a mark states that the file is UTF-8, UTF-16 or UTF-32."""
    split: Data[str] = "train"
    """`huggingface` only: split of the data set."""
    min_words: int = Field(3, ge=1)
    """Drop snippets with fewer words than this."""
    sections: tuple[str, ...] | None = None
    """Keep only these sections (names in lower case); null keeps all."""
    exclude_sections: tuple[str, ...] = ()
    """Drop these sections (names in lower case)."""
    include_terms: tuple[str, ...] = ()
    """Keep only snippets that contain at least one of these terms (whole words, case-insensitive); empty keeps all."""
    exclude_terms: tuple[str, ...] = ()
    """Drop snippets that contain any of these terms."""
    text_checks: Data[TextChecksConfig | None] = TextChecksConfig()
    """Repairs and checks of the text; null: no repairs and no checks."""
    morphology_prompts: Data[LocalPath[str | None]] = "morphology"
    """Prompts that resemble the snippets to keep: a YAML file or the name of a packaged set; null: no filter."""
    boilerplate_prompts: Data[LocalPath[str | None]] = "boilerplate"
    """Prompts that resemble the snippets to drop; a snippet that is more similar to these prompts than to
    `morphology_prompts` is dropped. Null: no filter."""
    morphology_margin: float = 0.0
    """Margin by which the similarity to `morphology_prompts` must exceed the similarity to `boilerplate_prompts`."""

    @model_validator(mode="after")
    def _check_combination(self) -> "ReportsConfig":
        if self.cancer_types is not None and self.format != "tcga" and not self.tcga_barcodes:
            raise ValueError("cancer_types requires format=tcga or tcga_barcodes=true")
        if self.metadata_id_column is not None and self.metadata_group_column is not None:
            raise ValueError("set metadata_id_column or metadata_group_column, not both")
        check_once(self.columns)
        if quoted := list(filter(_QUOTED.fullmatch, (*self.include_terms, *self.exclude_terms))):
            raise ValueError(f"terms must not contain their quotation marks: {', '.join(quoted)}")
        return self


class LeaksConfig(Section):
    """Leakage: tiles, patients and reports that occur in more than one split."""

    policy: Literal["error", "exclude", "note", "off"] = "error"
    """`error`: fail. `exclude`: drop and list leaking reports and leaking tiles. Of tiles that leak between two splits,
    those in the earlier split are dropped, so that no test tile is lost; a shifted test set, however, loses its own
    copies of training images, and shared patients are an error. `note`: only log leaks. `off`: do not check."""
    pixels: Literal["off", "exact", "near"] = "exact"
    """Duplicate images to find: images with identical pixels (`exact`), or images that are identical up to 90-degree
    rotations, flips, size, compression and brightness (`near`). Every image is decoded once per data set and output
    folder, which takes minutes for 300,000 small tiles with `exact`, and two to three times as long with `near`."""
    distance: int = Field(7, ge=0, le=11)
    """`near` only: maximum Hamming distance between the 64-bit perceptual hashes of two images."""
    similarity: float = Field(0.9, ge=-1, le=1)
    """`near` only: minimum correlation between two images that are reduced to 16 x 16 grey pixels."""
    spread: float = Field(6.0, ge=0)
    """`near` only: minimum standard deviation of the 16 x 16 grey pixels (0 to 255); tiles below this value, such as
    empty background, are not compared."""
