"""Configuration of the studies of finished runs and frozen models."""

from typing import Literal

from pydantic import Field, field_validator

from clipit.config.paths import LocalPath
from clipit.config.section import MAX_SEED, Distinct, Section, Seeds, check_once


class ProbingConfig(Section):
    """Probes, few-shot scores, label efficiency and retrieval with frozen features.

    Used by `clipit probe` and `clipit adapt`, not by a run.
    """

    probes: Distinct[Literal["linear", "adamw", "knn", "simple_shot"]] = ("linear", "knn", "simple_shot")
    """Classifiers fitted on the features; `adamw` follows eva's protocol and takes minutes per model if there are many
    tiles."""
    neighbours: int = Field(20, ge=1)
    """k of the k-nearest-neighbour probe; if there are fewer labelled tiles, all of them vote."""
    adamw_steps: int = Field(12_500, ge=1)
    """Maximum number of steps of the probe `adamw`; it stops after a fifth of these steps without improvement on the
    validation split."""
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "auroc"] = "balanced_accuracy"
    """Metric of the few-shot and label-efficiency tables."""
    shots: Distinct[int] = (1, 2, 4, 8, 16)
    """Numbers of labelled training tiles per class in the few-shot episodes (SimpleShot)."""
    episodes: int = Field(1000, ge=1)
    """Number of few-shot episodes for each number of shots."""
    shares: Distinct[float] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    """Fractions of the training labels on the label-efficiency curve; empty: no curve."""
    seeds: Seeds = (0, 1, 2, 3, 4)
    """Seeds for drawing the labels on the label-efficiency curve."""
    at: Distinct[int] = (1, 5, 10, 50)
    """Values of k for recall@k and precision@k."""
    votes_at: Distinct[int] = (1, 3, 5)
    """Values of k for the majority vote of the k nearest images."""
    centred: bool = False
    """Also score zero-shot classification with centred embeddings (see `pairing.centring`), which need embedded
    reports."""
    exclude_groups: bool = True
    """Exclude tiles of the query's own group (patient or slide) from its results."""
    captions: LocalPath[str | None] = None
    """CSV file with the columns tile_id and text: captions of test tiles, for recall@k between texts and images.
    Equal captions count as one text."""

    @field_validator("shots", "at", "votes_at")
    @classmethod
    def _check_counts(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if any(value < 1 for value in values):
            raise ValueError("each number must be at least 1")
        return values

    @field_validator("shares")
    @classmethod
    def _check_shares(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < value <= 1 for value in values):
            raise ValueError("use shares above 0 and up to 1")
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
"""Minimum and maximum level of each perturbation."""


class RobustnessConfig(Section):
    """Robustness of finished runs to perturbations and distribution shift.

    Used by `clipit robustness`, not by a run.
    """

    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "auroc"] = "balanced_accuracy"
    """Metric of the curves and of the adaptation tables."""
    tiles: int | None = Field(1000, ge=1)
    """Maximum number of tiles per split, spread evenly over classes and ids; null: all. Calibration uses all tiles."""
    perturbations: dict[
        Literal["macenko", "hed", "blur", "jpeg", "brightness", "contrast", "magnification"], tuple[float, ...]
    ] = {  # noqa: RUF012 (pydantic copies the default)
        "macenko": (0.05, 0.1, 0.2, 0.4),
        "hed": (0.05, 0.1, 0.2, 0.4),
        "blur": (0.5, 1.0, 2.0, 4.0),
        "jpeg": (90, 70, 50, 30, 10),
        "brightness": (0.5, 0.75, 1.25, 1.5),
        "contrast": (0.5, 0.75, 1.25, 1.5),
        "magnification": (0.5, 0.75, 1.25, 1.5, 2.0),
    }
    """Perturbation -> levels: strength of the stain jitter (macenko, hed), sigma in pixels of the stored tile (blur),
    JPEG quality (jpeg), and factors (brightness, contrast, magnification; above 1 zooms in)."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Seed for the stain jitter, which also depends on the tile's id."""
    vlm: bool = True
    """Also evaluate zero-shot classification with the VLM (needs `prompts`)."""
    adaptation: Distinct[Literal["statistics", "transductive"]] = ("statistics", "transductive")
    """Methods of test-time adaptation. `statistics`: adaptation to the feature statistics of the target tiles.
    `transductive`: transductive inference with a text prior."""
    batches: int = Field(1, ge=0)
    """Number of times that the adaptation guard is tested on batches with shifted class proportions. Each time, six
    batches are drawn from each set, with up to 30, 100 and 200 tiles and proportions from two Dirichlet
    distributions."""

    @field_validator("perturbations")
    @classmethod
    def _check_levels(cls, perturbations: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        for name, levels in perturbations.items():
            low, high = _LEVELS[name]
            outside = [level for level in levels if not low <= level <= high]
            if outside:
                raise ValueError(f"levels of {name} must be between {low:g} and {high:g}, not {outside}")
            check_once(levels)
            if name == "jpeg" and any(level != int(level) for level in levels):
                raise ValueError("levels of jpeg must be whole numbers")
        return perturbations


class PromptStudyConfig(Section):
    """Zero-shot classification with different prompts, to measure how much the wording matters.

    Used by `clipit prompts study`, not by a run.
    """

    modes: Distinct[Literal["single", "ensemble", "sampled", "screened"]] = (
        "single",
        "ensemble",
        "sampled",
        "screened",
    )
    """Classifiers built from a prompt set. `single`: the first name in the first template. `ensemble`: the mean of all
    texts. `sampled`: random choices of one name per class and one template, reported as median and quartiles.
    `screened`: the mean of the choices with the most confident predictions on unlabelled training tiles."""
    simple: LocalPath[str | None] = None
    """Simpler prompt set for the same classes to compare with `prompts`: a file or the name of a packaged set."""
    centred: bool = False
    """Also evaluate the VLM with centred embeddings (see `pairing.centring`), which need embedded reports."""
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "auroc"] = "balanced_accuracy"
    """Metric of the tables and plots; prompts.parquet contains all metrics."""
    draws: int = Field(100, ge=1)
    """Number of classifiers in the mode `sampled`."""
    candidates: int = Field(1000, ge=1)
    """Maximum number of classifiers that the mode `screened` considers."""
    keep: float = Field(0.05, gt=0, le=1)
    """Fraction of these classifiers that the mode `screened` keeps and averages."""
    screening_tiles: int = Field(1000, ge=1)
    """Maximum number of training tiles that the mode `screened` uses, without their labels."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Seed for drawing the sampled classifiers and the screening tiles."""
    templates: Distinct[str] = (
        "a {stain} {organ} photomicrograph showing {} {magnification}.",
        "a {stain} {organ} image of {} {magnification}.",
        "a {stain} {organ} histopathological photograph of {} {magnification}.",
        "presence of {} in {stain} {organ} tissue {magnification}.",
    )
    """Templates of the sensitivity grid, each with {}, {organ}, {magnification} and {stain} once."""
    organs: Distinct[str] = ("",)
    """Organ words of the grid, such as colorectal; an empty string omits the word."""
    magnifications: Distinct[str] = ("", "at 10x", "at 40x")
    """Magnification words of the grid."""
    stains: Distinct[str] = ("", "H&E stained")
    """Stain words of the grid."""


class LabelIssuesConfig(Section):
    """Suspicious labels, ranked by confident learning from out-of-fold predictions of a probe on frozen features.

    Used by `clipit label-issues`, not by a run.
    """

    features: Literal["vlm", "backbone"] = "vlm"
    """Frozen model whose features the probe uses: the VLM's image tower, or the backbone before training."""
    splits: Distinct[Literal["train", "validation", "test"]] = Field(("train", "validation"), min_length=1)
    """Splits whose labels are checked together. Test labels that are corrected with the help of a model's predictions
    favour that model."""
    folds: int = Field(5, ge=3)
    """Number of folds, grouped by patient or slide; the probe for a fold is fitted on the other folds."""
    shown: int = Field(100, ge=1)
    """Maximum number of tiles on the page."""
    neighbours: int = Field(3, ge=0)
    """Number of nearest tiles of other patients or slides shown next to each tile."""
    verified: LocalPath[str | None] = None
    """CSV file with the columns `tile` (or `id`) and `label`: verified labels of some or all tiles, used to score the
    ranking."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Seed for drawing the folds."""
