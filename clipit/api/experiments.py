"""Experiments in Python: compare arms, tune hyperparameters and probe frozen features."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from clipit.api.configuration import Config, as_config
from clipit.api.entry import public
from clipit.api.study_result import ResultFiles, StudyResult


@dataclass(frozen=True)
class CompareResult(ResultFiles):
    """A finished comparison.

    Attributes:
        folder: Folder of the comparison.
    """

    folder: Path

    @property
    def page(self) -> Path:
        """HTML page of the comparison."""
        return self.folder / "comparison.html"

    @property
    def report(self) -> Path:
        """Tables and notes as Markdown."""
        return self.folder / "comparison.md"

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """Content of comparison.json: every number of the page, with its provenance."""
        from clipit.comparison.export_tables import read_comparison

        return read_comparison(self.folder)

    @property
    def verdict(self) -> str:
        """Verdict on whether text helps, in one sentence; "" for comparisons written by earlier versions."""
        return str(self.numbers.get("verdict", ""))

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Runs whose training diverged, with the reason. Their seeds are left out of all arms' scores."""
        return list(self.numbers.get("failed_runs", []))

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Scores, one row per data set, backbone, test set, arm and seed, with their costs and provenance."""
        return pd.DataFrame(self.numbers["rows"])

    @cached_property
    def table(self) -> pd.DataFrame:
        """Main table, one row per data set, backbone, test set and arm, with scores from 0 to 1.

        Columns: mean and sd over seeds; difference from the baseline, paired by seed, with its 95% t-interval over
        seeds (low, high) and its bootstrap interval over test tiles (tiles_low, tiles_high); p (paired t-test) and
        p_holm (Holm-corrected over the arms of the test set); reference (whether the row is the VLM, not a student).
        """
        columns = ("data_set", "backbone", "test_set", "arm", "mean", "sd", "difference")
        rows = []
        for line in self.numbers["lines"]:
            seeds, tiles = line["over_seeds"] or {}, line["over_tiles"] or {}
            rows.append(
                {name: line[name] for name in columns}
                | {"low": seeds.get("low"), "high": seeds.get("high")}
                | {"tiles_low": tiles.get("low"), "tiles_high": tiles.get("high")}
                | {"p": line["p"]["value"], "p_holm": line["p_holm"]["value"], "reference": line["reference"]}
            )
        numeric = ("mean", "sd", "difference", "low", "high", "tiles_low", "tiles_high", "p", "p_holm")
        return pd.DataFrame(rows).astype(dict.fromkeys(numeric, "float64"))


@dataclass(frozen=True)
class TuneResult(ResultFiles):
    """A finished hyperparameter search.

    Attributes:
        file: JSON file with every trial and the chosen point of each arm.
    """

    file: Path

    @property
    def arms_file(self) -> Path:
        """YAML file with the `arms` block for the configuration."""
        return self.file.with_suffix(".yaml")

    @cached_property
    def _record(self) -> dict[str, Any]:
        from clipit.output_files.artifacts import read_json

        return read_json(self.file, "delete it and run clipit tune again, which keeps finished trials")

    @cached_property
    def trials(self) -> pd.DataFrame:
        """Trials, one row per arm, grid point and seed: arm, tuned keys, seed and validation score."""
        rows = [
            {"arm": arm, **trial["keys"], "seed": seed, "score": score}
            for arm, trials in self._record["trials"].items()
            for trial in trials
            for seed, score in zip(self._record["seeds"], trial["scores"], strict=True)
        ]
        return pd.DataFrame(rows)

    @property
    def chosen(self) -> dict[str, dict[str, Any]]:
        """Keys of each arm's best grid point by mean validation score, for `load_config(config, arms=...)`."""
        arms: dict[str, dict[str, Any]] = self._record["arms"]
        return arms


@dataclass(frozen=True)
class ProbeResult(StudyResult):
    """A finished probing study."""

    _name = "probing"

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Scores, one row per model (`subject`), task and metric, with intervals and provenance."""
        return self._read("probing.parquet")


@public
def compare(config: Config, agents: int = 1) -> CompareResult:
    """Compare arms over seeds, data sets and backbones; finished runs are reused.

    Example:
        >>> comparison = clipit.compare(clipit.load_config("demo", {"comparison.seeds": [0, 1]}))
        >>> comparison.table[["arm", "mean", "difference", "low", "high"]]

    Args:
        config: Configuration with a `comparison` section.
        agents: Number of processes on this machine that share the runs; with GPUs, each uses one.

    Raises:
        ConfigError: An arm's keys are invalid, or the arms' hyperparameters were tuned differently.
        DataError: A data set has no test tiles, or a prompt set lacks classes of the tiles.
        DivergenceError: Training diverged in so many runs that nothing can be compared.
    """
    from clipit.comparison.compare import compare as compare_arms

    file = as_config(config)
    return CompareResult(compare_arms(file.run, file.comparison, agents))


@public
def tune(config: Config, agents: int = 1) -> TuneResult:
    """Tune learning rates, steps and other keys on validation tiles, with the same grid for every arm.

    Example:
        >>> search = clipit.tune(config)
        >>> tuned = clipit.load_config(config, arms=search.chosen)

    Args:
        config: Configuration with a `comparison` section, which defines the arms and the grid.
        agents: Number of processes on this machine that share the trials; with GPUs, each uses one.

    Raises:
        DataError: There are no validation labels.
        DivergenceError: Training of an arm diverged at every grid point.
    """
    from clipit.comparison.tune import tune as tune_arms

    file = as_config(config)
    return TuneResult(tune_arms(file.run, file.comparison, agents))


@public
def probe(config: Config, run: str | Path | None = None) -> ProbeResult:
    """Evaluate frozen features with linear probes, k-NN, few-shot episodes, label-efficiency curves and retrieval.

    Example:
        >>> probes = clipit.probe(config, run=clipit.train(config).folder)
        >>> probes.rows.query("task == 'linear' and metric == 'accuracy'")[["subject", "value", "low", "high"]]

    Args:
        config: Configuration, with or without a `probing` section.
        run: Folder of a finished run with this configuration, whose classifier is also evaluated.

    Raises:
        DataError: No test tile has a label, or the run has different classes.
    """
    from clipit.studies.probing.probing_study import probe as probe_features

    file = as_config(config)
    return ProbeResult(probe_features(file.run, file.probing, None if run is None else Path(run)))
