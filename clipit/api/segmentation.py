"""Segment tiles in Python: compare segmentation methods on tiles that have masks."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from clipit.api.configuration import Config, as_config
from clipit.api.entry import public
from clipit.api.study_result import StudyResult


@dataclass(frozen=True)
class SegmentResult(StudyResult):
    """A finished comparison of segmentation methods."""

    _name = "segmentation"
    _fix = "run clipit segment again"

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Scores, one row per segmentation (`subject`), class, metric and averaging, with intervals and provenance.

        The column `kind` distinguishes methods from floors and ceilings.
        """
        return self._read("segmentation.parquet")

    @cached_property
    def images(self) -> pd.DataFrame:
        """Dice score and confusion matrix, one row per test image and segmentation, including floors and ceilings."""
        return self._read("images.parquet")


@public
def segment(config: Config, run: str | Path | None = None) -> SegmentResult:
    """Segment tiles with several methods, and score the methods against masks, alongside floors and ceilings.

    Thresholds and scales are chosen on validation masks. Scores are computed on test masks, with bootstrap intervals
    over patients.

    Example:
        >>> result = clipit.segment(clipit.load_config("glands.yaml"))
        >>> result.rows.query("metric == 'dice' and averaging == 'images'")[["subject", "kind", "class_name", "value"]]

    Args:
        config: Configuration with a `segmentation` section and tiles from a table with a `mask` column.
        run: Folder of a finished run, for the methods that use its classifier; None for no run.

    Raises:
        ConfigError: No mask classes are configured, or a method lacks its inputs.
        DataError: Masks cannot be used, or no test tile has a mask.
    """
    from clipit.segmentation.segmentation_study import segment as segment_tiles

    file = as_config(config)
    return SegmentResult(segment_tiles(file.run, file.segmentation, None if run is None else Path(run)))
