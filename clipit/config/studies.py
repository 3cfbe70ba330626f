"""Configuration of the studies of finished runs and frozen models."""

from typing import Literal

from pydantic import Field, field_validator

from clipit.config.data import LARGEST_SEED, Section, check_seeds


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


class PromptStudyConfig(Section):
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
