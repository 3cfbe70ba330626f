"""Compare arms, each with one or more seeds, on the labels of the same slides."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from statistics import fmean, stdev
from typing import TypeVar

import pandas as pd

from clipit.errors import DataError
from clipit.evaluation.intervals import Estimate, paired_bootstrap, t_interval
from clipit.evaluation.significance import Significance, holm, paired_t_test
from clipit.evaluation.slide_metrics import (
    SLIDE_METRICS,
    TRAIN,
    VALIDATION,
    PoolingChoice,
    choose_pooling,
    score_predictions,
)
from clipit.evaluation.slide_sets import LEVELS, Level, PoolingKey, SlideSet, collect_slides

T = TypeVar("T")
SlideTables = Mapping[str, Mapping[int, pd.DataFrame]]
"""Tables from `slide_scores.slide_table`, by arm and seed."""
CONTROL = Significance(None, "control")
"""Significance of controls, which are not tested."""


@dataclass(frozen=True, kw_only=True)
class SlideArmRow:
    """Score of one arm on one split, level and metric, and its difference from the reference.

    Attributes:
        pooling: Pooling method, `smoothed` if it pools smoothed scores; None without one.
        mean: Mean over seeds, `sd` their standard deviation; None where undefined.
        difference: Difference from the reference, with its bootstrap interval over patients (`low`, `high`; `reason`
            where it is undefined) and its t-interval over seeds (`seeds_low`, `seeds_high`). None for the reference.
        p: p value of the paired t-test over seeds; `p_holm` is corrected over the arms of the same split, level,
            pooling and metric (`p_reason` where undefined).
        labelled: Number of labelled slides or patients.
        patients: Number of patients.
    """

    arm: str
    split: str
    level: Level
    pooling: str | None
    smoothed: bool | None
    metric: str
    seeds: int
    mean: float | None
    sd: float | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None
    seeds_low: float | None = None
    seeds_high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    p_reason: str | None = None
    labelled: int
    patients: int


_COLUMNS = [each.name for each in fields(SlideArmRow)]


@dataclass(frozen=True)
class SlideComparison:
    """Comparison of arms on slide labels.

    Attributes:
        reference: Arm that the others are compared with.
        choices: Pooling of each arm, chosen on validation slides.
        table: One `SlideArmRow` per split, level, metric and arm, and per pooling if none was chosen.
        crossing: Number of patients with slides in several splits.
        unknown: Number of labelled slides without a known patient, by split; each counts as a separate patient.
    """

    reference: str
    choices: Mapping[str, PoolingChoice]
    table: pd.DataFrame
    crossing: int = 0
    unknown: Mapping[str, int] = field(default_factory=dict)

    def rows(self, split: str, metric: str, level: Level) -> list[SlideArmRow]:
        """Select the rows of a split, metric and level, with None for missing values."""
        table = self.table
        selected = table[(table["split"] == split) & (table["metric"] == metric) & (table["level"] == level)]
        values = selected.astype(object).where(selected.notna(), None)
        return [SlideArmRow(**dict(zip(_COLUMNS, row, strict=True))) for row in values[_COLUMNS].to_numpy()]


def compare_slide_arms(
    tables: SlideTables,
    slides: pd.DataFrame,
    classes: Sequence[str],
    reference: str,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> SlideComparison:
    """Compare the slide scores of several arms with those of a reference arm.

    If the table of slides has labelled validation slides, each arm's pooling is chosen on them by the mean balanced
    accuracy over its seeds, in the same way for all arms (`choose_pooling`), and only the splits other than
    training and validation are compared. Otherwise, the arms are compared with every pooling method on all splits
    except training.

    Differences are paired by seed and slide. An arm with a single seed, such as prompts without training, is paired
    with every seed of the other arm.

    Args:
        tables: Slide scores by arm and seed, all for the same slides.
        slides: Table of slides: `slide`, `label`, and optionally `group` (patient) and `split`.
        classes: Class names, in the order of the scores.
        reference: Arm that the others are compared with.
        resamples: Number of bootstrap resamples; 0 for no intervals.

    Raises:
        DataError: The reference is missing, or arms have different slides or pooling methods, or seeds that cannot be
            paired.
    """
    _check_reference(tables, reference)
    arms = {
        arm: {number: collect_slides(table, slides, classes) for number, table in by_seed.items()}
        for arm, by_seed in tables.items()
    }
    _check(arms, reference, same_poolings=True)
    choices = {arm: choose_pooling(*by_seed.values()) for arm, by_seed in arms.items()}
    return compare_slide_sets(arms, choices, reference, resamples=resamples, seed=seed)


def compare_slide_sets(
    arms: Mapping[str, Mapping[int, SlideSet]],
    choices: Mapping[str, PoolingChoice],
    reference: str,
    *,
    resamples: int = 1000,
    seed: int = 0,
    controls: Collection[str] = (),
) -> SlideComparison:
    """Compare arms like `compare_slide_arms`, but with given pooling methods, which may differ between arms.

    Args:
        arms: Scored slides by arm and seed, the same slides in each.
        choices: Pooling of each arm.
        reference: Arm that the others are compared with.
        resamples: Number of bootstrap resamples; 0 for no intervals.
        controls: Arms, such as one that predicts the class frequencies, whose differences are reported but not tested:
            they have no p-value, and are not counted in Holm's correction.

    Raises:
        DataError: The reference is missing, or arms have different slides or seeds that cannot be paired.
    """
    _check_reference(arms, reference)
    _check(arms, reference, same_poolings=choices[reference].key is None)
    first = next(iter(arms[reference].values()))
    rows: list[SlideArmRow] = []
    for split in first.split_names():
        chosen = choices[reference].key is not None
        if split == TRAIN or (chosen and split == VALIDATION):
            continue
        for level in LEVELS:
            for key in (None,) if chosen else tuple(first.scores):
                keys = {arm: choices[arm].key or key for arm in arms}
                rows += _compare(arms, keys, reference, split, level, resamples, seed, controls)
    table = pd.DataFrame(rows, columns=_COLUMNS)
    return SlideComparison(reference, choices, table, len(first.crossing_patients()), first.unknown_patients())


def _compare(
    arms: Mapping[str, Mapping[int, SlideSet]],
    keys: Mapping[str, PoolingKey | None],
    reference: str,
    split: str,
    level: Level,
    resamples: int,
    seed: int,
    controls: Collection[str],
) -> list[SlideArmRow]:
    """Compare all arms on one split and level, each with its pooling."""
    predictions = {
        arm: {number: scored.predictions(key, level, split) for number, scored in by_seed.items()}
        for arm, by_seed in arms.items()
        if (key := keys[arm]) is not None
    }
    scores = {
        arm: {number: score_predictions(table) for number, table in by_seed.items()}
        for arm, by_seed in predictions.items()
    }
    first = next(iter(predictions[reference].values()))
    labelled = first.take(first.labels >= 0)
    patients = len({*labelled.groups.tolist()} - {""}) + int((labelled.groups == "").sum())
    drawn: dict[str, Mapping[str, Estimate]] = {}
    for arm in predictions:
        if arm != reference and len(labelled.ids):
            pairs = _pairs(predictions[reference], predictions[arm])
            drawn[arm] = paired_bootstrap(pairs, SLIDE_METRICS, resamples, seed)
    rows = []
    for metric in SLIDE_METRICS:
        gains = {arm: _gains(scores[reference], scores[arm], metric) for arm in drawn}
        tests = {arm: CONTROL if arm in controls else _test(values) for arm, values in gains.items()}
        corrected = holm(tests)
        for arm, by_seed in scores.items():
            values = [entry[metric] for entry in by_seed.values()]
            defined = [value for value in values if value is not None]
            complete = len(defined) == len(values)
            key = keys[arm]
            row = SlideArmRow(
                arm=arm,
                split=split,
                level=level,
                pooling=key.pooling if key else None,
                smoothed=key.smoothed if key else None,
                metric=metric,
                seeds=len(values),
                mean=fmean(defined) if complete else None,
                sd=stdev(defined) if complete and len(defined) > 1 else None,
                labelled=len(labelled.ids),
                patients=patients,
            )
            if arm in drawn:
                paired, over_seeds = drawn[arm][metric], t_interval(gains[arm])
                row = replace(
                    row,
                    difference=paired.value,
                    low=paired.interval.low,
                    high=paired.interval.high,
                    reason=paired.interval.reason,
                    seeds_low=over_seeds.low,
                    seeds_high=over_seeds.high,
                    p=tests[arm].p,
                    p_holm=corrected[arm].p,
                    p_reason=tests[arm].reason,
                )
            rows.append(row)
    return rows


def _pairs(reference: Mapping[int, T], arm: Mapping[int, T]) -> list[tuple[T, T]]:
    """Pair the seeds of the reference and of an arm; a single seed is paired with every seed of the other."""
    if len(reference) == 1:
        return [(next(iter(reference.values())), other) for other in arm.values()]
    if len(arm) == 1:
        return [(base, next(iter(arm.values()))) for base in reference.values()]
    return [(reference[number], arm[number]) for number in sorted(reference)]


def _gains(
    reference: Mapping[int, Mapping[str, float | None]], arm: Mapping[int, Mapping[str, float | None]], metric: str
) -> list[float]:
    """Return the differences per pair of seeds; empty if a score is undefined."""
    pairs = [(base[metric], other[metric]) for base, other in _pairs(reference, arm)]
    gains = [other - base for base, other in pairs if base is not None and other is not None]
    return gains if len(gains) == len(pairs) else []


def _test(gains: Sequence[float]) -> Significance:
    return paired_t_test(gains) if gains else Significance(None, "a score is undefined")


def _check_reference(arms: Mapping[str, object], reference: str) -> None:
    if reference not in arms:
        raise DataError(f"unknown reference arm {reference}", fix=f"use one of: {', '.join(arms)}")


def _check(arms: Mapping[str, Mapping[int, SlideSet]], reference: str, *, same_poolings: bool) -> None:
    """Check that all arms have the same slides and pooling methods, and seeds to pair with those of the reference."""
    problems = []
    empty = [arm for arm, by_seed in arms.items() if not by_seed]
    if empty:
        raise DataError(f"no slide scores for {', '.join(empty)}", fix="score the slides with every arm")
    first = next(iter(arms[reference].values()))
    for arm, by_seed in arms.items():
        for number, scored in by_seed.items():
            different_poolings = same_poolings and scored.scores.keys() != first.scores.keys()
            if scored.slides.tolist() != first.slides.tolist() or different_poolings:
                problems.append(f"{arm}, seed {number}: its slides or pooling methods differ from those of {reference}")
        if len(by_seed) > 1 and len(arms[reference]) > 1 and by_seed.keys() != arms[reference].keys():
            other_seeds, reference_seeds = (", ".join(map(str, sorted(each))) for each in (by_seed, arms[reference]))
            problems.append(f"{arm}: seeds {other_seeds} cannot be paired with {reference_seeds} of {reference}")
    if problems:
        raise DataError("\n".join(problems), where="arms", fix="compare scores for the same slides and seeds")
