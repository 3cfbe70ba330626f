"""Compare models that were evaluated on the same items, such as a VLM before and after its adaptation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from clipit.errors import DataError
from clipit.evaluation.intervals import Interval, Statistics, bootstrap, t_interval
from clipit.evaluation.significance import Significance, holm, paired_t_test


class Subject(NamedTuple):
    """A model evaluated on a task."""

    task: str
    model: str


@dataclass(frozen=True)
class ItemResults:
    """Results of one model on the items of a task, from which its scores are computed.

    Attributes:
        ids: Ids of the items: tiles, or retrieval queries.
        groups: Group of each item; "" where unknown.
        scores: Function that computes the scores from the weights of the items.
        random: Expected score of random predictions, by metric, where known.
        reasons: Reason why a score is undefined, by metric.
    """

    ids: Shaped[np.ndarray, " n"]
    groups: Shaped[np.ndarray, " n"]
    scores: Statistics
    random: Mapping[str, float]
    reasons: Mapping[str, str]


@dataclass(frozen=True)
class SubjectScore:
    """Score of a model, averaged over seeds.

    Attributes:
        seeds: Score of each seed; None where undefined.
        mean: Mean over seeds; None if any is undefined.
        interval: Bootstrap interval of the mean over groups of items.
        random: Expected score of random predictions; None if unknown.
        n: Number of items.
        reason: Reason why the mean is undefined; "" otherwise.
    """

    subject: Subject
    metric: str
    seeds: Mapping[int, float | None]
    mean: float | None
    interval: Interval
    random: float | None
    n: int
    reason: str


@dataclass(frozen=True)
class ModelDifference:
    """Difference between two models on the same items, paired by item and seed.

    Attributes:
        reference: Task and model whose score is subtracted.
        differences: Difference for each seed; empty if a score is undefined.
        mean: Mean over seeds; None if undefined.
        over_groups: Paired bootstrap interval of the mean over groups of items.
        over_seeds: t-interval of the mean over seeds.
        p: p-value of the paired t-test over seeds.
        p_holm: p-value with Holm's correction over the contrasts of the same task and metric.
    """

    subject: Subject
    reference: Subject
    metric: str
    differences: Mapping[int, float]
    mean: float | None
    over_groups: Interval
    over_seeds: Interval
    p: Significance
    p_holm: Significance

    @property
    def outcome(self) -> str:
        """`better` or `worse` if both intervals are on the same side of 0, else `open`, that is, inconclusive.

        `undecided` if an interval is undefined.
        """
        groups, seeds = self.over_groups, self.over_seeds
        if groups.low is None or groups.high is None or seeds.low is None or seeds.high is None:
            return "undecided"
        if min(groups.low, seeds.low) > 0:
            return "better"
        return "worse" if max(groups.high, seeds.high) < 0 else "open"

    @property
    def reason(self) -> str:
        """Reason why the outcome is undecided; "" otherwise."""
        if self.outcome != "undecided":
            return ""
        return self.over_groups.reason if self.over_groups.low is None else self.over_seeds.reason


def compare_models(
    results: Mapping[Subject, Mapping[int, ItemResults]],
    contrasts: Sequence[tuple[Subject, Subject]],
    resamples: int,
    seed: int = 0,
) -> tuple[list[SubjectScore], list[ModelDifference]]:
    """Compute the scores of models on the same items, and differences between them, with intervals and p-values.

    All scores and differences use the same resamples of groups. A model without seeds, such as the VLM before its
    adaptation, is passed with the same result for every seed. For retrieval, queries are resampled, not the gallery.

    Args:
        results: Results by subject and seed; all have the same items and the same seeds.
        contrasts: Subject and reference of each difference; the reference is subtracted.
        resamples: Number of bootstrap resamples; 0 for no intervals.

    Returns:
        One score per subject and metric, and one difference per contrast and metric that both subjects have.

    Raises:
        DataError: The items or seeds differ.
    """
    first = next(iter(next(iter(results.values())).values()))
    _check_same(results, first)
    distinct = {id(each): each for by_seed in results.values() for each in by_seed.values()}

    def scores(weights: Float[np.ndarray, "n r"]) -> dict[str, Float[np.ndarray, " r"]]:
        known = {key: each.scores(weights) for key, each in distinct.items()}
        return _means(results, contrasts, known)

    overall = scores(np.ones((len(first.ids), 1)))
    intervals = bootstrap(scores, first.groups, resamples, seed)
    values = {key: each.scores(np.ones((len(first.ids), 1))) for key, each in distinct.items()}
    scores_by_model = [
        _subject_score(subject, metric, by_seed, values, overall, intervals)
        for subject, by_seed in results.items()
        for metric in values[id(next(iter(by_seed.values())))]
    ]
    by_key = {(score.subject, score.metric): score for score in scores_by_model}
    compared = [
        _contrast(by_key[subject, metric], by_key[reference, metric], overall, intervals)
        for subject, reference in contrasts
        for metric in dict.fromkeys(score.metric for score in scores_by_model if score.subject == subject)
        if (reference, metric) in by_key
    ]
    return scores_by_model, _correct(compared)


def _means(
    results: Mapping[Subject, Mapping[int, ItemResults]],
    contrasts: Sequence[tuple[Subject, Subject]],
    known: Mapping[int, Mapping[str, Float[np.ndarray, " r"]]],
) -> dict[str, Float[np.ndarray, " r"]]:
    """Compute the mean over seeds of each score, and the differences of these means."""
    means: dict[str, Float[np.ndarray, " r"]] = {}
    for subject, by_seed in results.items():
        for metric in known[id(next(iter(by_seed.values())))]:
            values = np.stack([known[id(each)][metric] for each in by_seed.values()])
            means[_name(subject, metric)] = values.mean(axis=0)
    differences = {}
    for subject, reference in contrasts:
        for name, values in means.items():
            metric = name.rpartition("\t")[2]
            if name == _name(subject, metric) and (other := _name(reference, metric)) in means:
                differences[_difference_name(subject, reference, metric)] = values - means[other]
    return means | differences


def _subject_score(
    subject: Subject,
    metric: str,
    by_seed: Mapping[int, ItemResults],
    values: Mapping[int, Mapping[str, Float[np.ndarray, " r"]]],
    overall: Mapping[str, Float[np.ndarray, " r"]],
    intervals: Mapping[str, Interval],
) -> SubjectScore:
    name, first_result = _name(subject, metric), next(iter(by_seed.values()))
    mean = _defined(overall[name])
    return SubjectScore(
        subject=subject,
        metric=metric,
        seeds={seed: _defined(values[id(each)][metric]) for seed, each in by_seed.items()},
        mean=mean,
        interval=intervals[name],
        random=first_result.random.get(metric),
        n=len(first_result.ids),
        reason="" if mean is not None else first_result.reasons.get(metric, "undefined on these items"),
    )


def _contrast(
    score: SubjectScore,
    reference: SubjectScore,
    overall: Mapping[str, Float[np.ndarray, " r"]],
    intervals: Mapping[str, Interval],
) -> ModelDifference:
    name = _difference_name(score.subject, reference.subject, score.metric)
    pairs = {seed: (value, reference.seeds[seed]) for seed, value in score.seeds.items()}
    differences = {seed: a - b for seed, (a, b) in pairs.items() if a is not None and b is not None}
    if len(differences) < len(pairs):
        differences = {}
    p = paired_t_test([*differences.values()]) if differences else Significance(None, "a score is undefined")
    return ModelDifference(
        subject=score.subject,
        reference=reference.subject,
        metric=score.metric,
        differences=differences,
        mean=_defined(overall[name]),
        over_groups=intervals[name],
        over_seeds=t_interval([*differences.values()]),
        p=p,
        p_holm=p,
    )


def _correct(contrasts: Sequence[ModelDifference]) -> list[ModelDifference]:
    """Apply Holm's correction to the contrasts of each task and metric."""
    corrected: dict[int, Significance] = {}
    for family in dict.fromkeys((each.subject.task, each.metric) for each in contrasts):
        members = {i: each.p for i, each in enumerate(contrasts) if (each.subject.task, each.metric) == family}
        corrected |= holm(members)
    return [replace(each, p_holm=corrected[i]) for i, each in enumerate(contrasts)]


def _check_same(results: Mapping[Subject, Mapping[int, ItemResults]], first: ItemResults) -> None:
    seeds = [*next(iter(results.values()))]
    for subject, by_seed in results.items():
        if [*by_seed] != seeds:
            raise DataError(
                f"the seeds of {subject.model} on {subject.task} differ from those of the other models",
                where=[*by_seed],
                fix="evaluate all models with the same seeds",
            )
        if any(not np.array_equal(each.ids, first.ids) for each in by_seed.values()):
            raise DataError(
                f"the items of {subject.model} on {subject.task} differ from those of the other models",
                fix="evaluate all models on the same items",
            )


def _name(subject: Subject, metric: str) -> str:
    return "\t".join((*subject, metric))


def _difference_name(subject: Subject, reference: Subject, metric: str) -> str:
    return "\t".join((*subject, "-", *reference, metric))


def _defined(value: Float[np.ndarray, " r"]) -> float | None:
    return float(value[0]) if np.isfinite(value[0]) else None
