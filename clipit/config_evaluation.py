"""Configuration of what is measured, and against what."""

from typing import Literal

from pydantic import Field, model_validator

from clipit.config_data import Section, TilesConfig


class EvaluationConfig(Section):
    """What is computed from the predictions."""

    splits: tuple[Literal["train", "validation", "test"], ...] = ("validation", "test")
    bootstrap: int = Field(1000, ge=0)
    """Resamples of the 95 % intervals; 0: none."""
    batch_size: int = Field(256, ge=1)


class ComparisonConfig(Section):
    """Which arms are compared, over which seeds, under which search."""

    arms: tuple[str, ...] = ("image_only", "clip_it_all", "shuffled_pairs", "image_embedding")
    baseline: str = "image_only"
    """The arm that differences are taken against."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Reported seeds: labels, initialisation and batches all depend on them."""
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "auroc"] = "accuracy"
    shifted: TilesConfig | None = None
    """A further test set (its test split counts), such as another centre."""
    learning_rates: tuple[float, ...] = Field((5e-4, 1e-3, 2e-3), min_length=1)
    """The search grid of scripts/tune.py, the same for every arm: learning rates ..."""
    steps: tuple[int, ...] = Field((150, 300), min_length=1)
    """... times steps."""
    tuning_seeds: tuple[int, ...] = Field((100, 101), min_length=1)
    """Seeds of the search; they are never reported."""

    @model_validator(mode="after")
    def _fair(self) -> "ComparisonConfig":
        if self.baseline not in self.arms:
            raise ValueError(f"the baseline {self.baseline!r} must be one of the arms")
        if set(self.seeds) & set(self.tuning_seeds):
            raise ValueError("seeds and tuning_seeds must not share a seed")
        return self
