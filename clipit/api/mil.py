"""Predict slide and patient labels in Python: multiple-instance learning on stored features."""

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from clipit.api.configuration import Config, as_config
from clipit.api.entry import public
from clipit.api.study_result import StudyResult
from clipit.output_files.whole_files import read_csv_frame

_TEXT_COLUMNS = frozenset({"arm", "bag", "slide", "patient", "split", "label", "predicted", "map", "reason"})
"""Text columns of the bag tables."""


@dataclass(frozen=True)
class MilResult(StudyResult):
    """A finished study of slide or patient labels."""

    _name = "mil"

    @cached_property
    def table(self) -> pd.DataFrame:
        """Comparison, one row per split, level, metric and arm: mean and sd over seeds, difference from the reference.

        The difference has a bootstrap interval over patients (low, high), a t-interval over seeds (seeds_low,
        seeds_high) and p-values (p, p_holm).
        """
        return self._read("mil.parquet")

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Scores, one row per arm, seed and bag: arm, seed, bag, patient, split, label, predicted, score_<class>."""
        return self._csv("bag_scores.csv")

    @cached_property
    def map_scores(self) -> pd.DataFrame:
        """Agreement of the maps with masks, alongside floors and ceilings; empty without masks."""
        path = self.folder / "map_scores.csv"
        return self._csv(path.name) if path.is_file() else pd.DataFrame()

    def _csv(self, name: str) -> pd.DataFrame:
        from clipit.output_files.artifacts import reading

        path = self.folder / name
        with reading(path, fix="run the study again"):
            return read_csv_frame(path, _TEXT_COLUMNS)


@public
def train_mil(config: Config) -> MilResult:
    """Train networks on stored features to predict slide or patient labels, and compare `mil.arms` over seeds.

    With `mil.conditions`, the arms are compared under each condition; `table` then has a `condition` column, and the
    bag scores are in the condition folders.

    Example:
        >>> study = clipit.train_mil(clipit.load_config("slides.yaml", {"mil.seeds": [0, 1]}))
        >>> study.table.query("split == 'test' and metric == 'auroc'")[["arm", "level", "mean", "difference"]]

    Args:
        config: Configuration with a `mil` section.

    Raises:
        ConfigError: An arm is unknown, or the features cannot be used.
        DataError: There are too few bags to train on, or no test bag has a label.
    """
    from clipit.mil.conditions import conditions_study
    from clipit.mil.mil_study import mil_study

    file = as_config(config, needs_tiles=False)
    if file.mil.conditions:
        return MilResult(conditions_study(file))
    return MilResult(mil_study(file.run, file.mil))
