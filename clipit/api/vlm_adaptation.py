"""Adapt VLMs in Python: train a VLM with controls, and evaluate it before and after."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from clipit.api.configuration import Config, as_config
from clipit.api.entry import public
from clipit.api.study_result import StudyResult

_SCORES = ["task", "model", "metric", "mean", "low", "high", "random", "n", "reason"]
_DIFFERENCES = [
    "task", "model", "reference_task", "reference", "metric", "difference", "low", "high", "seeds_low", "seeds_high",
    "p", "p_holm", "outcome", "reason",
]  # fmt: skip


@dataclass(frozen=True)
class AdaptationResult(StudyResult):
    """A finished study of adapted VLMs."""

    _name = "adapt"

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """Content of adapt.json: verdict, means, differences and provenance."""
        from clipit.output_files.artifacts import read_json

        return read_json(self.folder / "adapt.json", "run the study again")

    @property
    def verdict(self) -> str:
        """Verdict on whether the text improved the VLM, in plain language."""
        return str(self.numbers["verdict"])

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Adaptations whose training diverged, with the reason. Their seeds are left out of all arms' scores."""
        return list(self.numbers.get("failed_adaptations", []))

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Means over seeds, one row per task, model and metric, with the interval over groups (low, high)."""
        return pd.DataFrame(self.numbers["scores"], columns=_SCORES)

    @cached_property
    def table(self) -> pd.DataFrame:
        """Differences between models, one row per task, pair of models and metric.

        Columns: difference (mean over seeds) with its bootstrap interval over groups (low, high), its t-interval over
        seeds (seeds_low, seeds_high), p and p_holm, and the outcome: better, worse, open or undecided.
        """
        return pd.DataFrame(self.numbers["contrasts"], columns=_DIFFERENCES)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Scores, one row per task, model (`arm`), seed and metric, with provenance."""
        return self._read("adapt.parquet")

    def vlm(self, arm: str = "text", seed: int | None = None) -> Path:
        """Return the folder of an adapted VLM, to be set as `vlm.name` (or as `vlm.path`, for a VLM with a known name).

        If the licence or the format does not allow a merged model, return the adapter's folder, to be set as
        `vlm.adapter`.

        Args:
            arm: Arm of the adaptation.
            seed: Seed; None for the first one.

        Raises:
            DataError: The study has no such adaptation.
        """
        from clipit.errors import DataError
        from clipit.models.vlm_export import ADAPTER, MERGED

        adaptations = self.numbers["adaptations"]
        by_seed = adaptations.get(arm, {}) if isinstance(arm, str) else {}
        key = next(iter(by_seed), "") if seed is None else str(seed)
        if key not in by_seed:
            known = ", ".join(f"{name}, seed {number}" for name, seeds in adaptations.items() for number in seeds)
            wanted = arm if seed is None else f"{arm}, seed {seed}"
            raise DataError(f"there is no adaptation {wanted}", where=self.folder, fix=f"use one of: {known}")
        folder = Path(by_seed[key]["folder"])
        return folder / (MERGED if (folder / MERGED).is_dir() else ADAPTER)


@public
def adapt_vlm(config: Config) -> AdaptationResult:
    """Adapt the VLM once per arm and seed, and evaluate it before and after; finished adaptations are reused.

    Example:
        >>> study = clipit.adapt_vlm(clipit.load_config("own_adaptation", {"adapt.seeds": [0, 1]}))
        >>> study.verdict
        >>> study.table.query("task == 'zero-shot' and metric == 'auroc'")[["model", "reference", "difference"]]
        >>> config = clipit.load_config("own_table", {"vlm.name": study.vlm("text")})

    Args:
        config: Configuration with an `adapt` section.

    Raises:
        ConfigError: Keys contradict each other, or a configuration of `adapt.forgetting` cannot be read.
        DataError: There are too few examples, or test tiles leak into them.
        DivergenceError: Training diverged in so many adaptations that nothing can be compared.
        ModelError: A tower does not support the method in `adapt.tuning`.
    """
    from clipit.studies.adapted_vlms.adaptation_study import adapt_study

    file = as_config(config, needs_tiles=False)
    return AdaptationResult(adapt_study(file.run, file.adapt, file.probing))


@public
def write_pairs(config: Config, folder: str | Path, format: Literal["csv", "webdataset"] = "csv") -> dict[str, int]:
    """Write the training and validation examples of the `adapt` section in a format that open_clip's trainer reads.

    Example:
        >>> clipit.write_pairs("own_adaptation.yaml", "pairs", "webdataset")  # number of pairs by split

    Args:
        config: Configuration with an `adapt` section.
        folder: Folder to create.
        format: `csv` for tables of image paths and captions, or `webdataset` for tar shards.

    Returns:
        Number of pairs by split.

    Raises:
        DataError: There are too few examples, or an image cannot be read.
        ArtifactError: The folder is not empty, or cannot be written to.
    """
    from clipit.vlm_training.examples import make_examples, validation_examples
    from clipit.vlm_training.write_pairs import write_pairs as write
    from clipit.workspace.workspace import Workspace

    file = as_config(config, needs_tiles=False)
    workspace, seed = Workspace(file.run), file.adapt.seeds[0]
    examples = {"train": make_examples(file.run, file.adapt, "text", seed, "train", workspace, batches=False)}
    held_out = validation_examples(file.run, file.adapt, "text", seed, workspace, batches=False)
    if held_out is not None:
        examples["validation"] = held_out
    return write(examples, Path(folder), format)
