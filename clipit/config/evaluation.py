"""Configuration of the evaluation of a run."""

from typing import Literal

from pydantic import Field, field_validator

from clipit.config.effects import Evaluation, Reporting, Speed
from clipit.config.section import Section

_MIN_RESAMPLES = 20


class EvaluationConfig(Section):
    """Evaluation of the trained classifier."""

    splits: Evaluation[tuple[Literal["train", "validation", "test"], ...]] = ("validation", "test")
    """Splits to score."""
    bootstrap: Evaluation[int] = Field(1000, ge=0)
    """Number of bootstrap resamples for the 95% intervals, at least 20; 0: no intervals."""
    batch_size: Speed[int] = Field(256, ge=1)
    """Tiles per forward pass."""
    page: Reporting[bool] = True
    """Whether to generate the plots and the page of the run (report.html). `clipit pages` can generate the page
    later."""

    @field_validator("bootstrap")
    @classmethod
    def _check_bootstrap(cls, resamples: int) -> int:
        if 0 < resamples < _MIN_RESAMPLES:
            raise ValueError(f"use at least {_MIN_RESAMPLES} resamples, or 0 for no intervals")
        return resamples
