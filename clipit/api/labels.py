"""Check labels in Python: measure annotator agreement, merge annotators' masks, and find suspicious labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from clipit.api.configuration import Config, as_config
from clipit.api.entry import public
from clipit.api.study_result import ResultFiles


@dataclass(frozen=True)
class AnnotatorsResult(ResultFiles):
    """Agreement and consensus of several annotators.

    Attributes:
        folder: Output folder.
    """

    folder: Path

    @property
    def page(self) -> Path:
        """HTML page with agreement, confusion matrices, human ceiling and the tiles with the least agreement."""
        return self.folder / "annotators.html"

    @cached_property
    def record(self) -> dict[str, Any]:
        """Contents of the page: agreement, pairs, training and test (per-annotator estimates), human_ceiling, notes."""
        from clipit.output_files.artifacts import read_json

        return read_json(self.folder / "annotators.json", "run clipit annotators again")

    @cached_property
    def tiles(self) -> pd.DataFrame:
        """Annotated tiles, one row each.

        Columns: tile, split, votes_<class>, majority, tied (1 if several classes have the most votes), consensus and
        p_<class> (posterior).
        """
        texts = ("tile", "split", "majority", "consensus")
        return _read_texts(self.folder / "annotators.csv", texts, "run clipit annotators again")

    @property
    def summary(self) -> str:
        """Key figures and agreement, one line each."""
        alpha = self.record["agreement"]
        value = "undefined" if alpha["alpha"] is None else f"{alpha['alpha']:.3f}"
        interval = "" if alpha["low"] is None else f" [{alpha['low']:.3f}, {alpha['high']:.3f}]"
        facts = [f"{name}: {fact}" for name, fact in self.record["facts"].items()]
        return "\n".join([*facts, f"Krippendorff's alpha: {value}{interval}"])


@dataclass(frozen=True)
class MergedMasksResult(ResultFiles):
    """Consensus masks of several annotators.

    Attributes:
        folder: Folder of the masks: `consensus/`, `confident/` (uncertain pixels ignored) and `posterior/` (.npy).
        images: Folder that the paths in `table` are relative to. If the images are in a zip, this is `folder`, and the
            zip must be unpacked into it.
    """

    folder: Path
    images: Path

    @property
    def page(self) -> Path:
        """HTML page with pixel agreement, confusion matrices, and each annotator's Dice score against the others."""
        return self.folder / "masks.html"

    @property
    def table(self) -> Path:
        """Table of the tiles with the columns mask_consensus and mask_confident."""
        return self.folder / "tiles.csv"

    @cached_property
    def record(self) -> dict[str, Any]:
        """Content of the page: facts, shared_annotators, notes and parts.

        There is one part for the training and validation tiles and one for the test tiles, each with its alpha, priors
        and annotators (accuracy, Dice by class, confusion).
        """
        from clipit.output_files.artifacts import read_json

        return read_json(self.folder / "masks.json", "run clipit annotators --masks again")


@dataclass(frozen=True)
class LabelIssuesResult(ResultFiles):
    """Results of a label check.

    Attributes:
        folder: Output folder.
    """

    folder: Path

    @property
    def page(self) -> Path:
        """HTML page with the most suspicious tiles."""
        return self.folder / "label_issues.html"

    @cached_property
    def tiles(self) -> pd.DataFrame:
        """Checked tiles, one row each, the most suspicious first.

        Columns: tile, split, group, label (as given), suggested, suspicious (whether the label is suspicious),
        label_probability, suggested_probability and fold.
        """
        texts = ("tile", "split", "group", "label", "suggested")
        return _read_texts(self.folder / "label_issues.csv", texts, "run clipit label-issues again")


def _read_texts(path: Path, texts: Sequence[str], fix: str) -> pd.DataFrame:
    from clipit.output_files.artifacts import reading

    with reading(path, fix):
        return pd.read_csv(path, dtype=dict.fromkeys(texts, str), keep_default_na=False)


@public
def describe_annotators(config: Config, *, shown: int = 24) -> AnnotatorsResult:
    """Compute the agreement, confusion matrices, consensus and human ceiling of a configuration's annotators.

    Example:
        >>> annotators = clipit.describe_annotators(config)
        >>> annotators.record["agreement"]["alpha"]
        >>> annotators.tiles.query("majority != consensus")

    Args:
        config: Configuration with `tiles.annotations`.
        shown: Number of tiles with the least agreement to show on the page.

    Raises:
        ConfigError: No annotators are configured.
        DataError: The tiles or the annotators' labels are invalid.
    """
    from clipit.workspace.annotator_files import write_annotators

    return AnnotatorsResult(write_annotators(as_config(config).run, shown=shown).parent)


@public
def merge_masks(
    config: Config,
    masks: str | Path,
    *,
    files: str | Path | None = None,
    confidence: float = 0.9,
    shown: int = 24,
) -> MergedMasksResult:
    """Merge several annotators' masks with Dawid-Skene over pixels (STAPLE), and write masks for `clipit segment`.

    Example:
        >>> merged = clipit.merge_masks(config, "masks.csv")
        >>> merged.record["parts"][0]["annotators"][0]["dice"]

    Args:
        config: Configuration with tiles from a table and `segmentation.classes`.
        masks: Table with the columns `tile`, `annotator` and `mask`.
        files: Folder or zip that the mask paths are relative to; None for the folder of the table.
        confidence: Posterior probability below which pixels are ignored in the confident masks.
        shown: Number of tiles with the largest fraction of uncertain pixels to show on the page.

    Raises:
        ConfigError: The tiles do not come from a table, or no classes are configured.
        DataError: A table or a mask is invalid.
    """
    from clipit.workspace.annotator_masks import write_annotator_masks

    page, images = write_annotator_masks(
        as_config(config),
        Path(masks),
        files=None if files is None else Path(files),
        confidence=confidence,
        shown=shown,
    )
    return MergedMasksResult(page.parent, images)


@public
def find_label_issues(config: Config) -> LabelIssuesResult:
    """Find suspicious labels: confident learning on out-of-fold predictions of a probe on frozen features.

    Example:
        >>> issues = clipit.find_label_issues(config)
        >>> issues.tiles.query("suspicious")[["tile", "label", "suggested", "label_probability"]]

    Args:
        config: Configuration, with or without a `label_issues` section.

    Raises:
        DataError: There are no labels to check, or fewer patients or slides than folds.
        ModelError: cleanlab is not installed.
    """
    from clipit.studies.label_issues.label_issues_study import study_label_issues

    file = as_config(config)
    return LabelIssuesResult(study_label_issues(file.run, file.label_issues))
