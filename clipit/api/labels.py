"""Labels in Python: find suspicious ones."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from clipit.api.configuration import Config, as_config
from clipit.api.entry import public


@dataclass(frozen=True)
class LabelIssuesResult:
    """A finished check of labels.

    Attributes:
        folder: Folder of the check.
    """

    folder: Path

    @property
    def page(self) -> Path:
        """HTML page with the most suspicious tiles."""
        return self.folder / "label_issues.html"

    @cached_property
    def tiles(self) -> pd.DataFrame:
        """Checked tiles, one row each, the most suspicious first.

        Columns: tile, split, group, label (as given), suggested, suspicious (whether the label is), label_probability,
        suggested_probability and fold.
        """
        from clipit.artifacts import reading

        path = self.folder / "label_issues.csv"
        names = ("tile", "split", "group", "label", "suggested")
        with reading(path, fix="run clipit label-issues again"):
            return pd.read_csv(path, dtype=dict.fromkeys(names, str), keep_default_na=False)


@public
def find_label_issues(config: Config) -> LabelIssuesResult:
    """Find suspicious labels: confident learning on out-of-fold predictions of a probe on frozen features.

    Example:
        >>> issues = clipit.find_label_issues(config)
        >>> issues.tiles.query("suspicious")[["tile", "label", "suggested", "label_probability"]]

    Args:
        config: Configuration, with or without a section `label_issues`.

    Raises:
        DataError: There is no label to check, or there are fewer patients or slides than folds.
        ModelError: cleanlab is not installed.
    """
    from clipit.studies.label_issues.study import study_label_issues

    file = as_config(config)
    return LabelIssuesResult(study_label_issues(file.run, file.label_issues))
