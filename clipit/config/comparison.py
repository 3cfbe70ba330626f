"""Configuration of a comparison of arms."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from clipit.config.data import TilesConfig
from clipit.config.paths import LocalPath
from clipit.config.section import Distinct, Section, Seeds, check_once


class ComparisonConfig(Section):
    """Arms to compare over seeds, data sets and backbones, and the search for their hyperparameters.

    Used by `clipit compare`, `clipit tune`, `clipit demo` and `clipit doctor`, not by a run. `clipit check-leaks`
    and `clipit robustness` read only its shifted test sets.
    """

    arms: Distinct[str] = ("image_only", "clip_it_all", "shuffled_pairs", "image_embedding")
    """Arms to compare, in table order."""
    baseline: str = "image_only"
    """Arm with which the other arms are compared."""
    controls: Distinct[str] = ()
    """Arms that serve as additional baselines, each in a separate table. The control `image_embedding` tests whether a
    gain is due to the text."""
    seeds: Seeds = (0, 1, 2)
    """Seeds whose results are reported; a seed determines the labelled tiles, the initialisation and the batches."""
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "auroc"] = "accuracy"
    """Metric reported in the tables."""
    shifted: dict[str, TilesConfig] = Field(default_factory=dict)
    """Additional test sets by name, such as other centres; only their test split is used."""
    backbones: Distinct[str] = ()
    """Names of the backbones with which every arm is run; empty: only `backbone`."""
    data_sets: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Data sets or settings with which every arm is run: name -> dotted keys that differ from this file, such as
    `{labels40: {tiles.labels.value: 40}}`; empty: only this file."""
    equal_steps: bool = True
    """If the arms differ in their number of training steps, run those with fewer steps again with the largest
    number."""
    analyses: Distinct[Literal["complementarity", "pairing", "classes", "embeddings"]] = (
        "complementarity",
        "pairing",
        "classes",
        "embeddings",
    )
    """Analyses of the finished runs of each data set and backbone."""
    learning_rates: Distinct[float] = Field((5e-4, 1e-3, 2e-3), min_length=1)
    """Learning rates in the search grid of `clipit tune`; the grid is the same for every arm."""
    steps: Distinct[int] = Field((150, 300), min_length=1)
    """Numbers of training steps in the search grid."""
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Additional axes of the search grid: dotted key -> values, such as `distillation.weight: [1, 4, 16]`. If an
    arm does not use a loss term, the keys of that term are left out of its grid, and intermediate learning rates are
    added instead, which requires at least two `learning_rates`."""
    tuning_seeds: Seeds = (100, 101)
    """Seeds for the search; they must not be among the reported `seeds`."""
    pairing_page: int = Field(1000, ge=0)
    """Number of training tiles on the pairing page, with the predictions of the first arm that uses reports; 0: no
    page."""
    run_pages: Literal["first_seed", "all", "none"] = "first_seed"
    """Runs for which plots and a page (report.html) are generated. `clipit pages` can generate the page of any finished
    run."""
    searched: LocalPath[str | None] = None
    """Search record (the .json file written by `clipit tune`) from which `arms` was taken; null: the record in the
    output folder, if there is one. The comparison reports which arms differ from the record."""

    @field_validator("grid")
    @classmethod
    def _check_grid(cls, grid: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        for key, values in grid.items():
            if key in ("training.learning_rate", "training.steps"):
                raise ValueError(f"set {key} with comparison.learning_rates or comparison.steps instead")
            if "." not in key or not values:
                raise ValueError(
                    f"{key!r}: expected a dotted key with a list of values, such as {{distillation.weight: [1, 4]}}"
                )
            check_once(tuple(str(value) for value in values))
        return grid

    @field_validator("pairing_page")
    @classmethod
    def _check_pairing_page(cls, tiles: int) -> int:
        if tiles == 1:
            raise ValueError("use at least 2 tiles, or 0 for no page")
        return tiles

    @field_validator("shifted", mode="before")
    @classmethod
    def _check_shifted(cls, sets: Any) -> Any:
        if isinstance(sets, Mapping) and any(not isinstance(keys, Mapping | TilesConfig) for keys in sets.values()):
            raise ValueError("name each shifted set: {name: {source: ..., path: ...}}")
        return sets

    @model_validator(mode="after")
    def _check_combination(self) -> "ComparisonConfig":
        if self.baseline not in self.arms:
            raise ValueError(f"the baseline {self.baseline!r} must be one of the arms")
        unlisted = sorted(set(self.controls) - set(self.arms))
        if unlisted:
            raise ValueError(f"controls must be among the arms: {', '.join(unlisted)}")
        if "test" in self.shifted:
            raise ValueError("a shifted test set cannot be named test, which is a split of `tiles`")
        if set(self.seeds) & set(self.tuning_seeds):
            raise ValueError("seeds and tuning_seeds must not share a seed")
        return self
