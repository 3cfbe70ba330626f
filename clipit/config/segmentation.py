"""Configuration of the segmentation of tiles with masks."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from clipit.config.mask_training import MaskTrainingConfig
from clipit.config.paths import LocalPath
from clipit.config.section import Distinct, Section, check_once, check_one_line

SegmentationMethod = Literal[
    "vlm_windows", "student_windows", "classifier_windows", "vlm_tokens", "student_tokens", "token_head",
    "token_head_pseudo", "unet", "unet_pseudo",
]  # fmt: skip
"""Methods of `clipit.segmentation.methods.METHODS`, in table order."""


class WindowsConfig(Section):
    """Windows that are classified one by one and averaged where they overlap."""

    scales: Distinct[float] = Field((0.5, 1.0, 2.0), min_length=1)
    """Edge lengths of the windows as multiples of the model's training field of view. Either the best single scale or
    the mean over all scales is selected on the validation masks; without validation masks, the mean is used."""
    overlap: float = Field(0.5, ge=0, lt=1)
    """Overlap of adjacent windows as a fraction of their edge length."""
    batch_size: int = Field(64, ge=1)
    """Windows per forward pass."""

    @field_validator("scales")
    @classmethod
    def _check_scales(cls, scales: tuple[float, ...]) -> tuple[float, ...]:
        if any(scale <= 0 for scale in scales):
            raise ValueError("use scales above 0")
        return scales


class SegmentationConfig(Section):
    """Segmentation of tiles with masks (`tiles.columns.mask`): mask classes, methods, and lower and upper reference
    scores (floors and ceilings).

    Used by `clipit segment` and `clipit annotators`, not by a run.
    """

    classes: dict[str, int | tuple[int, ...]] = Field(default_factory=dict)
    """Mask values of each class, such as `{stroma: 0, gland: [1, 2]}`. In GeoJSON masks, each polygon is named after
    its class, and the rest of the tile belongs to the class with the value 0."""
    ignore: Distinct[int] = (255,)
    """Mask values of pixels that are used neither for training nor for scores."""
    foreground: Distinct[str] = ()
    """Classes whose mean score is the headline score; empty: all except the class with the value 0."""
    methods: Distinct[SegmentationMethod] = ()
    """Methods to compare; empty: all methods that need no training masks and whose inputs are configured."""
    prompts: LocalPath[str | None] = None
    """Prompt set for the methods that use text: a file or the name of a packaged set; null: `prompts` of the run."""
    class_map: dict[str, str] = Field(default_factory=dict)
    """Mapping from prompt or classifier classes to mask classes; the probabilities of classes with the same mask class
    are summed. Each model uses the entries for its own classes, and the probabilities of its unmapped classes are
    dropped. If there is no entry for any class of a model, its classes must be the mask classes."""
    windows: WindowsConfig = WindowsConfig()
    training: MaskTrainingConfig = MaskTrainingConfig()
    threshold: Literal["validation", "none"] = "validation"
    """`validation`: if there are two classes, methods that need no training masks predict the second class where its
    probability exceeds the threshold that maximises the mean Dice on the validation masks. With `none`, and in all
    other cases, the most probable class is predicted."""
    haematoxylin: str | None = None
    """Class that a floor predicts where the haematoxylin channel exceeds Otsu's threshold; null: the foreground class
    if there are two classes, otherwise this floor is omitted."""
    ceilings: Distinct[float] = (20.0, 40.0, 80.0, 140.0)
    """Tile edge lengths in micrometres for the ceilings: the best possible scores with one class per tile (with more
    than two classes, the majority class of each tile)."""
    shown: int = Field(1, ge=0)
    """Number of images shown per method for each of the best, median and worst Dice scores."""

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, classes: dict[str, int | tuple[int, ...]]) -> dict[str, int | tuple[int, ...]]:
        values = [value for listed in classes.values() for value in ([listed] if isinstance(listed, int) else listed)]
        check_one_line(classes)
        if any(listed == () for listed in classes.values()):
            raise ValueError("every class needs at least one value")
        if any(not 0 <= value <= 65535 for value in values):
            raise ValueError("mask values must be whole numbers from 0 to 65535")
        check_once(tuple(values))
        if len(classes) == 1:
            raise ValueError("name at least two classes, including the background")
        return classes

    @field_validator("ceilings")
    @classmethod
    def _check_ceilings(cls, edges: tuple[float, ...]) -> tuple[float, ...]:
        if any(edge <= 0 for edge in edges):
            raise ValueError("each edge length must be above 0")
        return edges

    @model_validator(mode="after")
    def _check_names(self) -> "SegmentationConfig":
        names = {*self.foreground, *self.class_map.values(), *([self.haematoxylin] if self.haematoxylin else [])}
        if unknown := sorted(names - {*self.classes}):
            raise ValueError(f"not among classes: {', '.join(unknown)}")
        if both := sorted({*self.ignore} & {*self.class_of}):
            raise ValueError(f"values listed both for a class and in ignore: {', '.join(map(str, both))}")
        return self

    @property
    def class_of(self) -> dict[int, int]:
        """Class index of each mask value."""
        listed = [(value,) if isinstance(value, int) else value for value in self.classes.values()]
        return {value: code for code, values in enumerate(listed) for value in values}

    @property
    def averaged(self) -> tuple[str, ...]:
        """Names of the foreground classes."""
        rest = self.class_of.get(0)
        return self.foreground or tuple(name for code, name in enumerate(self.classes) if code != rest)
