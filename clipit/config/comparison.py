"""Configuration of a comparison of arms."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from clipit.config.data import Section, TilesConfig, check_once, check_seeds


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
    analyses: tuple[Literal["complementarity", "pairing", "classes", "embeddings"], ...] = (
        "complementarity",
        "pairing",
        "classes",
        "embeddings",
    )
    """Analyses of the finished runs of each data set and backbone."""
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
