"""Configuration of what is measured, and against what."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from clipit.config.data import LARGEST_SEED, Section, TilesConfig, check_once, check_seeds

_LEAST_RESAMPLES = 20


class EvaluationConfig(Section):
    """What is computed from the predictions."""

    splits: tuple[Literal["train", "validation", "test"], ...] = ("validation", "test")
    bootstrap: int = Field(1000, ge=0)
    """Resamples of the 95 % intervals, 20 or more; 0: none."""
    batch_size: int = Field(256, ge=1)

    @field_validator("bootstrap")
    @classmethod
    def _enough_resamples(cls, resamples: int) -> int:
        if 0 < resamples < _LEAST_RESAMPLES:
            raise ValueError(f"quantiles need {_LEAST_RESAMPLES} resamples or more; 0: no intervals")
        return resamples


class ZeroShotConfig(Section):
    """What scripts/prompts.py study measures: ways to ask, and how much the wording matters."""

    modes: tuple[Literal["single", "ensemble", "sampled", "screened"], ...] = (
        "single",
        "ensemble",
        "sampled",
        "screened",
    )
    """Classifiers made of a prompt set: first name in the first template; mean over all texts; many draws of one name
    per class and one template (median and quartiles); mean of those most decided about unlabelled training tiles."""
    simple: str | None = None
    """A second prompt set (YAML file or a packaged name) of the same classes, set against `prompts` as the richer."""
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "auroc"] = "balanced_accuracy"
    """Score of the tables and pictures; prompts.parquet holds all scores."""
    draws: int = Field(100, ge=1)
    """Classifiers of the mode `sampled`: one name per class and one template each."""
    candidates: int = Field(1000, ge=1)
    """Most classifiers that the mode `screened` looks at."""
    keep: float = Field(0.05, gt=0, le=1)
    """Share of them that it keeps and averages."""
    screening_tiles: int = Field(1000, ge=1)
    """Most training tiles that it screens with; no label is read."""
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    """Of the draws, and of the choice of screening tiles."""
    templates: tuple[str, ...] = (
        "a {stain} {organ} photomicrograph showing {} {magnification}.",
        "a {stain} {organ} image of {} {magnification}.",
        "a {stain} {organ} histopathological photograph of {} {magnification}.",
        "presence of {} in {stain} {organ} tissue {magnification}.",
    )
    """Templates of the sensitivity grid; each holds {}, {organ}, {magnification} and {stain} once."""
    organs: tuple[str, ...] = ("",)
    """Organ words of the grid, such as colorectal; an empty one leaves the word out."""
    magnifications: tuple[str, ...] = ("", "at 10x", "at 40x")
    """Magnification words of the grid."""
    stains: tuple[str, ...] = ("", "H&E stained")
    """Stain words of the grid."""


class ComparisonConfig(Section):
    """Which arms are compared, over which seeds, under which search."""

    arms: tuple[str, ...] = ("image_only", "clip_it_all", "shuffled_pairs", "image_embedding")
    baseline: str = "image_only"
    """The arm that differences are taken against."""
    controls: tuple[str, ...] = ()
    """Arms that all others are set against as well, each in a table of its own; image_embedding: is it the text?"""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Reported seeds: labels, initialisation and batches all depend on them."""
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "auroc"] = "accuracy"
    shifted: dict[str, TilesConfig] = Field(default_factory=dict)
    """Further test sets (their test splits count), such as other centres, each under a name."""
    backbones: tuple[str, ...] = ()
    """Backbones to run every arm on, by name; empty: the one of `backbone`."""
    data_sets: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Data sets or settings to run every arm on: name -> keys (dotted) that differ from this file, such as
    `{labels320: {tiles.labels.value: 40}}`; empty: this file as it is."""
    equal_steps: bool = True
    """Arms that were tuned to fewer steps than the longest one are also run at its steps, and shown so."""
    why: tuple[Literal["complementarity", "pairing", "classes", "embeddings"], ...] = (
        "complementarity",
        "pairing",
        "classes",
        "embeddings",
    )
    """Analyses on the first seed of each data set and backbone."""
    learning_rates: tuple[float, ...] = Field((5e-4, 1e-3, 2e-3), min_length=1)
    """The search grid of scripts/tune.py, the same for every arm: learning rates ..."""
    steps: tuple[int, ...] = Field((150, 300), min_length=1)
    """... times steps ..."""
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """... times further axes: dotted key -> values, such as `distillation.weight: [1, 4, 16]`. An arm that lacks the
    term has no trials of its keys."""
    tuning_seeds: tuple[int, ...] = Field((100, 101), min_length=1)
    """Seeds of the search; they are never reported."""
    pairing_page: int = Field(1000, ge=0)
    """Training tiles on the page of each data set's pairing, with what the first text arm predicts of them; 0: no
    page. Without reports there is none."""
    searched: str | None = None
    """Record of the search (the .json of scripts/tune.py) that `arms` was taken from; None: the one in the output
    folder, if there is one. The comparison says whether the arms are as it chose."""

    @field_validator("grid")
    @classmethod
    def _axes(cls, grid: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        for key, values in grid.items():
            if key in ("training.learning_rate", "training.steps"):
                raise ValueError(f"{key} has a key of its own: comparison.learning_rates or comparison.steps")
            if "." not in key or not values:
                raise ValueError(f"{key!r}: give a dotted key with a list of values, {{distillation.weight: [1, 4]}}")
            check_once(tuple(str(value) for value in values))
        return grid

    @field_validator("pairing_page")
    @classmethod
    def _enough_tiles(cls, tiles: int) -> int:
        if tiles == 1:
            raise ValueError("a page shows 2 tiles or more; 0: no page")
        return tiles

    @field_validator("shifted", mode="before")
    @classmethod
    def _named_sets(cls, sets: Any) -> Any:
        if isinstance(sets, Mapping) and any(not isinstance(keys, Mapping | TilesConfig) for keys in sets.values()):
            raise ValueError("give each shifted set a name: {name: {source: ..., path: ...}}")
        return sets

    @field_validator("arms", "backbones")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        check_once(names)
        return names

    @field_validator("seeds", "tuning_seeds")
    @classmethod
    def _seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        check_seeds(seeds)
        return seeds

    @model_validator(mode="after")
    def _fair(self) -> "ComparisonConfig":
        if self.baseline not in self.arms:
            raise ValueError(f"the baseline {self.baseline!r} must be one of the arms")
        strange = sorted(set(self.controls) - set(self.arms))
        if strange:
            raise ValueError(f"controls must be among the arms: {', '.join(strange)}")
        if "test" in self.shifted:
            raise ValueError("a shifted test set cannot be called test: that is the one of `tiles`")
        if set(self.seeds) & set(self.tuning_seeds):
            raise ValueError("seeds and tuning_seeds must not share a seed")
        return self


class ProbingConfig(Section):
    """What scripts/probe.py measures on frozen features."""

    probes: tuple[Literal["linear", "adamw", "knn", "simple_shot"], ...] = ("linear", "knn", "simple_shot")
    """Classifiers over the features; `adamw` is eva's protocol (minutes per model on many tiles)."""
    neighbours: int = Field(20, ge=1)
    """k of the k-NN; with fewer labelled tiles, all of them vote."""
    adamw_steps: int = Field(12_500, ge=1)
    """Most steps of the probe `adamw`; it stops when a fifth of them brought no gain on validation."""
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "auroc"] = "balanced_accuracy"
    """Score of the few-shot and label-efficiency tables."""
    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Labelled training tiles per class of a few-shot episode (SimpleShot)."""
    episodes: int = Field(1000, ge=1)
    """Few-shot episodes per number of shots."""
    shares: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    """Shares of the training labels of the label-efficiency curve; empty: no curve."""
    seeds: tuple[int, ...] = Field((0, 1, 2, 3, 4), min_length=1)
    """Seeds that draw the labels of the curve."""
    at: tuple[int, ...] = (1, 5, 10, 50)
    """k of Recall@k and precision@k."""
    votes_at: tuple[int, ...] = (1, 3, 5)
    """k of the image-to-image majority vote."""
    exclude_groups: bool = True
    """A tile of the query's own group (patient or slide) never counts as found."""
    captions: str | None = None
    """CSV with the columns tile_id and text: true texts of test tiles, for text-to-image and image-to-text Recall@k."""

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        check_seeds(seeds)
        return seeds

    @field_validator("shots", "at", "votes_at")
    @classmethod
    def _whole(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if any(value < 1 for value in values):
            raise ValueError("numbers of tiles start at 1")
        return values

    @field_validator("shares")
    @classmethod
    def _shares(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < value <= 1 for value in values):
            raise ValueError("shares lie above 0 and up to 1")
        return values


_LEVELS: dict[str, tuple[float, float]] = {
    "macenko": (0.0, 1.0),
    "hed": (0.0, 1.0),
    "blur": (0.0, 50.0),
    "jpeg": (1, 100),
    "brightness": (0.0, 10.0),
    "contrast": (0.0, 10.0),
    "magnification": (0.1, 10.0),
}
"""Least and greatest level of each perturbation."""


class RobustnessConfig(Section):
    """What scripts/robustness.py measures of finished runs."""

    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "auroc"] = "balanced_accuracy"
    """Score of the curves and of the adaptation tables."""
    tiles: int | None = Field(1000, ge=1)
    """Most tiles per split, spread evenly over classes and ids; None: all. (Calibration is of all tiles.)"""
    perturbations: dict[
        Literal["macenko", "hed", "blur", "jpeg", "brightness", "contrast", "magnification"], tuple[float, ...]
    ] = {  # noqa: RUF012 (pydantic gives each object its own)
        "macenko": (0.05, 0.1, 0.2, 0.4),
        "hed": (0.05, 0.1, 0.2, 0.4),
        "blur": (0.5, 1.0, 2.0, 4.0),
        "jpeg": (90, 70, 50, 30, 10),
        "brightness": (0.5, 0.75, 1.25, 1.5),
        "contrast": (0.5, 0.75, 1.25, 1.5),
        "magnification": (0.5, 0.75, 1.25, 1.5, 2.0),
    }
    """Perturbation -> levels: spread of the stain jitter (macenko, hed), sigma in pixels of the stored tile (blur),
    JPEG quality, and factors (brightness, contrast, magnification; above 1 is zoomed in)."""
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    """Of the stain jitter; what happens to a tile depends on this and its id alone."""
    vlm: bool = True
    """Also measure the VLM's zero-shot answers (needs `prompts`)."""
    adaptation: tuple[Literal["statistics", "transductive"], ...] = ("statistics", "transductive")
    """Test-time adaptations: feature statistics of the target tiles; transductive with a text prior."""
    batches: int = Field(1, ge=0)
    """Six batches (up to 30, 100 and 200 tiles, shares of the classes from two Dirichlet laws) are drawn from each set,
    this many times, to count the errors of the adaptation's guard where classes are not as frequent as in training."""

    @field_validator("perturbations")
    @classmethod
    def _levels(cls, asked: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        for name, levels in asked.items():
            low, high = _LEVELS[name]
            outside = [level for level in levels if not low <= level <= high]
            if outside:
                raise ValueError(f"levels of {name} lie between {low:g} and {high:g}, not at {outside}")
            if name == "jpeg" and any(level != int(level) for level in levels):
                raise ValueError("qualities of jpeg are whole numbers")
        return asked
