"""Configuration of multiple-instance learning: slide or patient labels, predicted from stored features."""

from typing import Any, Literal

from pydantic import Field, model_validator

from clipit.config.paths import LocalPath
from clipit.config.section import MAX_SEED, Distinct, Section, Seeds

MilPooling = Literal["attention", "mean", "max"]


class MilTrainingConfig(Section):
    """Network and training of one multiple-instance model."""

    pooling: MilPooling = "attention"
    """Pooling of a bag: gated attention, the mean of its instances, or the instance with the highest logit for each
    class; set by the arms of the study."""
    hidden: int = Field(128, ge=1)
    """Width of the layer that embeds each instance."""
    attention: int = Field(64, ge=1)
    """Width of the gated attention."""
    dropout: float = Field(0.25, ge=0, lt=1)
    """Dropout rate for the embedded instances during training."""
    epochs: int = Field(60, ge=1)
    """Maximum number of passes over the training bags; the epoch with the lowest validation loss is kept."""
    patience: int = Field(15, ge=1)
    """Stop after this many epochs without a lower validation loss."""
    batch_size: int = Field(8, ge=1)
    """Bags per step."""
    steps_per_epoch: int | None = Field(None, ge=1)
    """Steps of an epoch; null: one pass over the training bags. If arms with few labels are compared with
    arms that also learn from unlabelled bags, set this key so that all arms take the same number of steps."""
    learning_rate: float = Field(1e-3, gt=0)
    """Constant learning rate of AdamW."""
    weight_decay: float = Field(1e-2, ge=0)
    """Weight decay of AdamW."""
    instances: int | None = Field(None, ge=1)
    """Maximum number of instances per training bag, which bounds the memory use of a step; a new sample is drawn in
    every epoch. Null: all. Predictions always use all instances."""


class MilTargetsConfig(Section):
    """Targets for training bags in addition to labels, for the arms that learn from reports and their controls."""

    label_weight: float = Field(1.0, gt=0)
    """Weight of the cross-entropy with labels from reports, or with predicted or shuffled labels."""
    vector_weight: float = Field(1.0, gt=0)
    """Weight of the cosine distance between the projected representation of a bag and the embedding of its report, or
    the mean of its own features."""


class MilConfig(Section):
    """Prediction of slide or patient labels: bags of stored features, the arms of the study, and maps.

    Used by `clipit mil`, not by a run.
    """

    bags: Literal["slide", "patient"] = "slide"
    """Labelled unit: one bag per slide, or one per patient with the tiles of all of the patient's slides. Tiles without
    a slide in their id (`slide@x,y,edge`) form one bag per group."""
    features: Literal["vlm", "backbone", "run", "h5"] = "vlm"
    """Tile features: from the VLM (in the joint space), from the frozen backbone, from the classifier of a finished run
    (`mil.run`), or from files computed by TRIDENT or CLAM (`mil.h5`)."""
    run: LocalPath[str | None] = None
    """Folder of the finished run, for `features: run`."""
    h5: LocalPath[str | None] = None
    """Folder of .h5 files, one per slide, or a single file, for `features: h5`."""
    slides: LocalPath[str | None] = None
    """Table with the columns `slide`, `label`, `group` (patient) and `split`, for `features: h5`; whole patients are
    held out for validation and testing if the table has no such split. The keys classes, class_map, splits
    and other_parts of the `tiles` section apply to this table, as do its `columns` for label, group and split."""
    validation_fraction: float = Field(0.2, gt=0, lt=1)
    """Fraction of the patients of `slides` held out for validation if the table has no validation split."""
    test_fraction: float = Field(0.2, gt=0, lt=1)
    """Fraction of the patients of `slides` held out for testing if the table has no test split."""
    split_seed: int = Field(0, ge=0, le=MAX_SEED)
    """Seed for drawing the held-out patients, independent of `seeds`."""
    labels_per_class: int | None = Field(None, ge=1)
    """Number of training bags per class, and of validation bags per class, whose labels are kept; the bags are drawn
    for each seed. Null: all labels are kept."""
    training: MilTrainingConfig = MilTrainingConfig()
    targets: MilTargetsConfig = MilTargetsConfig()
    arms: Distinct[str] = ("attention", "mean", "max", "zero_shot", "shuffled_labels")
    """Arms of the study, in table order; `zero_shot` needs `prompts` and features from the VLM. Additional arms learn
    from reports (`report_labels`, `report_embedding`, or both: `report`) and need the `reports` section; their
    controls are `predicted_labels`, `image_embedding`, `shuffled_report_labels` and `shuffled_report_embedding`."""
    reference: str = "mean"
    """Arm with which the other arms are compared."""
    conditions: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings under which all arms are compared: name -> dotted keys that differ from this file, such as
    `{few labels: {mil.labels_per_class: 4}}`; empty: only this file."""
    seeds: Seeds = (0, 1, 2, 3, 4)
    """Seeds for initialisation, the order of bags, shuffling labels, and choosing the labels to keep."""
    resamples: int = Field(1000, ge=0)
    """Number of bootstrap resamples of patients; 0: no intervals."""
    maps: int = Field(3, ge=0)
    """Number of test bags on the page, with their maps or most attended tiles."""
    masks: LocalPath[str | None] = None
    """Folder of masks (`<slide>.png`, of any resolution) to compare the maps with."""
    mask_values: dict[str, int] = Field(default_factory=dict)
    """Mapping from each class to its value in the masks; pixels with the value 255 are ignored, and those with other
    values do not belong to the class. Masks without a pixel of the slide's class are listed; it is an error if
    this applies to all masks of a class."""

    @model_validator(mode="after")
    def _check_combination(self) -> "MilConfig":
        if self.reference not in self.arms:
            raise ValueError(f"the reference {self.reference!r} must be one of the arms")
        if self.features == "run" and self.run is None:
            raise ValueError("features=run requires the key run: the folder of a finished run")
        if self.features == "h5" and (self.h5 is None or self.slides is None):
            raise ValueError("features: h5 requires the keys h5 (feature files) and slides (table of labels)")
        if self.features != "h5" and (self.h5 is not None or self.slides is not None):
            raise ValueError("h5 and slides are read only with features=h5")
        if (self.masks is None) != (not self.mask_values):
            raise ValueError("set masks (the mask folder) and mask_values (the value of each class) together")
        invalid = sorted(name for name, value in self.mask_values.items() if not 0 <= value < 255)
        if invalid:
            raise ValueError(f"mask values must lie between 0 and 254, because 255 is ignored: {', '.join(invalid)}")
        return self
