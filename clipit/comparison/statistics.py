"""Statistics of a comparison: means over seeds, paired differences, intervals and corrected p-values of every arm."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean
from typing import NamedTuple

import pandas as pd

from clipit.config.comparison import ComparisonConfig
from clipit.evaluation.intervals import Estimate, Interval, paired_bootstrap, t_interval
from clipit.evaluation.predictions import read_predictions
from clipit.evaluation.score_row import ScoreRow
from clipit.evaluation.significance import Significance, holm, paired_t_test

PERCENT = 100.0
REFERENCE = "reference"
"""Prefix of the names of reference rows, which score the VLM itself."""


class ArmKey(NamedTuple):
    """Identifier of an arm on one test set of one data set and backbone."""

    data_set: str
    backbone: str
    test_set: str
    arm: str

    @property
    def setting(self) -> tuple[str, str]:
        """Data set and backbone."""
        return self.data_set, self.backbone


@dataclass(frozen=True)
class ArmResult:
    """One arm on one test set, over all seeds.

    Attributes:
        key: Data set, backbone, test set and arm.
        scores: Score in 0..1 by seed; None if undefined.
        differences: Difference from the baseline's score by seed; empty for the baseline, or if a score is undefined.
        over_seeds: 95% t-interval of the mean difference; None without differences.
        over_tiles: Paired bootstrap of the mean difference over test tiles (groups, where known).
        p: Uncorrected p-value of a paired t-test over seeds.
        p_holm: The same p-value, Holm-corrected over all arms, data sets and backbones of the test set.
        rows: Score rows, one per seed.
    """

    key: ArmKey
    scores: dict[int, float | None]
    differences: dict[int, float]
    over_seeds: Interval | None
    over_tiles: Estimate | None
    p: Significance
    p_holm: Significance
    rows: tuple[ScoreRow, ...]

    @property
    def reference(self) -> bool:
        """Whether this is a reference classifier (the VLM itself) rather than a student."""
        return self.key.arm.startswith(f"{REFERENCE}: ") and all(row.run is None for row in self.rows)

    @property
    def mean(self) -> float | None:
        """Mean score over seeds; None if any is undefined."""
        values = [value for value in self.scores.values() if value is not None]
        return mean(values) if values and len(values) == len(self.scores) else None


@dataclass(frozen=True)
class ComparisonResults:
    """All scores of a comparison and their statistics.

    Attributes:
        rows: One score per data set, backbone, test set, arm and seed.
        arms: Every arm, with differences from the baseline.
        against: For each control arm, by name: the results of all students, with differences from that control.
    """

    rows: Sequence[ScoreRow]
    arms: Sequence[ArmResult]
    against: Mapping[str, Sequence[ArmResult]]


def compute_statistics(comparison: ComparisonConfig, rows: Sequence[ScoreRow], resamples: int) -> ComparisonResults:
    """Compare every arm with the baseline, and every student with each control.

    Args:
        comparison: Metric, baseline and controls.
        rows: All scores; their predictions are read for the bootstrap over test tiles.
    """
    bootstrap = tile_bootstrap(comparison.metric, resamples)
    students = [row for row in rows if row.run]
    arms = compute_results(rows, comparison.baseline, bootstrap)
    against = {control: compute_results(students, control, bootstrap) for control in comparison.controls}
    return ComparisonResults(rows, arms, against)


TileBootstrap = Callable[[Sequence[ScoreRow], Sequence[ScoreRow]], Estimate | None]
"""Function that takes the rows of the baseline and of an arm, in the same seed order, and estimates the difference."""


def tile_bootstrap(metric: str, resamples: int) -> TileBootstrap:
    """Return a function that computes a paired bootstrap over the test tiles."""
    return partial(_bootstrap_predictions, metric=metric, resamples=resamples)


def _bootstrap_predictions(
    baseline: Sequence[ScoreRow], arm: Sequence[ScoreRow], metric: str, resamples: int
) -> Estimate | None:
    if any(row.score is None for row in (*baseline, *arm)):
        return None
    tables = [
        [read_predictions(row.predictions_file(), row.predictions_sha256).select("test") for row in rows]
        for rows in (baseline, arm)
    ]
    return paired_bootstrap(list(zip(*tables, strict=True)), (metric,), resamples)[metric]


def compute_results(rows: Sequence[ScoreRow], baseline: str, bootstrap: TileBootstrap) -> list[ArmResult]:
    """Compute the statistics of every arm, in the order of the rows.

    Args:
        rows: Scores of all data sets, backbones, test sets, arms and seeds.
        baseline: Arm that the others are compared with, seed by seed.
        bootstrap: Paired bootstrap over test tiles, as returned by `tile_bootstrap`.
    """
    if not rows:
        return []
    table = _paired_scores(rows, baseline)
    results = [_arm_result(seeds, bootstrap) for _, seeds in table.groupby(list(ArmKey._fields), sort=False)]
    corrected = {result.key: result.p for result in results}
    for test_set in table["test_set"].unique():
        corrected |= holm({r.key: r.p for r in results if r.key.test_set == test_set and not r.reference})
    corrected |= {result.key: Significance(None, "reference row") for result in results if result.reference}
    return [replace(result, p_holm=corrected[result.key]) for result in results]


def _paired_scores(rows: Sequence[ScoreRow], baseline: str) -> pd.DataFrame:
    """Tabulate the scores with those of the baseline: `row`, `score`, `baseline_row` and `difference` per seed."""
    keys = [*ArmKey._fields, "seed"]
    table = pd.DataFrame([{key: getattr(row, key) for key in (*keys, "score")} | {"row": row} for row in rows])
    table["score"] = table["score"].astype("float64")
    pair_by = ["data_set", "backbone", "test_set", "seed"]
    baseline_scores = table[table["arm"] == baseline][[*pair_by, "score", "row"]]
    baseline_scores = baseline_scores.rename(columns={"score": "baseline_score", "row": "baseline_row"})
    table = table.merge(baseline_scores, how="left", on=pair_by)
    table["difference"] = (table["score"] - table["baseline_score"]).where(table["arm"] != baseline)
    return table


def _arm_result(seeds: pd.DataFrame, bootstrap: TileBootstrap) -> ArmResult:
    rows: tuple[ScoreRow, ...] = tuple(seeds["row"])
    complete = bool(seeds["difference"].notna().all())
    differences = dict(zip(seeds["seed"].tolist(), seeds["difference"].tolist(), strict=True)) if complete else {}
    values = list(differences.values())
    has_predictions = all(row.predictions is not None for row in rows)
    p = paired_t_test(values) if values else Significance(None, "nothing to compare with")
    return ArmResult(
        key=ArmKey(rows[0].data_set, rows[0].backbone, rows[0].test_set, rows[0].arm),
        scores={row.seed: row.score for row in rows},
        differences=differences,
        over_seeds=t_interval(values) if values else None,
        over_tiles=bootstrap(list(seeds["baseline_row"]), rows) if values and has_predictions else None,
        p=p,
        p_holm=p,
        rows=rows,
    )
