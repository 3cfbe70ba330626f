"""Evaluate slide scores per slide and per patient, and choose a pooling method on validation slides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32, Int64

from clipit.errors import DataError, counted
from clipit.evaluation.intervals import Statistics, bootstrap, group_numbers
from clipit.evaluation.metrics import describe_averaging, explain_undefined, weighted_scores
from clipit.evaluation.predictions import Predictions
from clipit.evaluation.slide_scores import SCORE_PREFIX
from clipit.evaluation.slide_sets import LEVELS, Level, PoolingKey, SlideSet, collect_slides, unknown_patients_note

SLIDE_METRICS = ("balanced_accuracy", "accuracy", "macro_f1", "weighted_f1", "auroc")
CHOSEN_BY = "balanced_accuracy"
"""Metric by which the pooling is chosen on validation slides."""
VALIDATION, TRAIN = "validation", "train"
NOT_SCORED = "not scored"
_TIE_DIGITS = 9


@dataclass(frozen=True)
class PoolingChoice:
    """Pooling chosen on validation slides, or the reason why none was chosen.

    Attributes:
        key: Chosen pooling; None if none was chosen.
        sentence: Sentence that states how the pooling was chosen, or why none was.
        scores: Balanced accuracy on validation slides by pooling; empty if none could be computed.
    """

    key: PoolingKey | None
    sentence: str
    scores: Mapping[PoolingKey, float]


@dataclass(frozen=True)
class SlideEvaluation:
    """Evaluation of slide scores.

    Attributes:
        scores: One row per split, level (`slide` or `patient`), pooling and metric: `split`, `level`, `pooling`,
            `smoothed`, `chosen`, `metric`, `value`, `low`, `high`, `reason` (why the value or its interval is
            undefined), `over` (the classes that the value covers, if some have no slide), `labelled` (number of
            labelled slides or patients), `patients`, and `single` (whether each labelled slide belongs to a different
            patient).
        slides: One row per scored slide: `slide`, `patient`, `label`, `split`, `tiles`; with a chosen pooling also its
            scores, `predicted` and `tied`, otherwise the class predicted by each pooling method.
        failed: Slides without scores: `slide` and `reason`.
        notes: Notes on excluded slides and patients, and on the reliability of the scores.
        resamples: Number of bootstrap resamples; 0 if there are no intervals.
    """

    classes: tuple[str, ...]
    choice: PoolingChoice
    scores: pd.DataFrame
    slides: pd.DataFrame
    failed: pd.DataFrame
    notes: tuple[str, ...]
    resamples: int
    seed: int


def evaluate_slides(
    table: pd.DataFrame,
    slides: pd.DataFrame,
    classes: Sequence[str],
    *,
    failures: Mapping[str, str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> SlideEvaluation:
    """Evaluate slide scores against labels, per slide and per patient, for every pooling method.

    Slides of the split `train` are not evaluated. If there are labelled slides of the split `validation`, the pooling
    is chosen on them (`choose_pooling`) and marked; otherwise all pooling methods are reported and none is chosen.
    AUROC is computed on relative scores (`SlideSet.predictions`) as the one-vs-rest macro mean, or for the second class
    if there are two. Intervals are percentile bootstrap intervals over patients; all pooling methods share the
    resamples.

    Args:
        table: Slide scores from `slide_scores.slide_table`.
        slides: Table of slides: `slide`, and optionally `label`, `group` (patient) and `split`.
        classes: Class names, in the order of the scores.
        failures: Reason why a slide has no scores, by slide; other slides without scores are listed as `not scored`.
        resamples: Number of bootstrap resamples; 0 for no intervals.

    Raises:
        DataError: The tables do not match (see `collect_slides`), or there are fewer than two classes.
    """
    if len(classes) < 2:
        raise DataError("slide scores of a single class cannot be evaluated", fix="score at least two classes")
    scored = collect_slides(table, slides, classes)
    choice = choose_pooling(scored)
    rows = []
    for split in scored.split_names():
        if split == TRAIN:
            continue
        for level in LEVELS:
            rows += _metric_rows(scored, split, level, choice.key, resamples, seed)
    failed = _failed_slides(slides, scored, failures or {})
    return SlideEvaluation(
        classes=tuple(classes),
        choice=choice,
        scores=pd.DataFrame(rows, columns=_COLUMNS),
        slides=_slide_rows(table, scored, choice.key),
        failed=failed,
        notes=tuple(_notes(scored, len(failed))),
        resamples=resamples,
        seed=seed,
    )


def choose_pooling(*sets: SlideSet, unit: Level = "slide") -> PoolingChoice:
    """Choose the pooling with the highest balanced accuracy on labelled validation slides.

    Ties are broken in favour of the smaller K, then of `mean` rather than `share`, and then of unsmoothed scores.
    No pooling method is chosen if fewer than two classes have validation slides.

    Args:
        sets: Scores of the same slides by one classifier, one set per seed; their balanced accuracies are averaged.
        unit: Scored unit, `slide` or `patient`, for the sentence.
    """
    first = sets[0]
    rows = (first.splits == VALIDATION) & (first.labels >= 0)
    present = len(np.unique(first.labels[rows]))
    if len(first.labels) and (first.labels < 0).all():
        sentence = f"No {unit} has a label, so nothing is evaluated and no pooling method is chosen."
        return PoolingChoice(None, sentence, {})
    if present < 2:
        same_class = f"all labelled validation {unit}s have the same class"
        reason = same_class if rows.any() else f"there are no labelled validation {unit}s"
        return PoolingChoice(None, f"No pooling method was chosen, because {reason}. All are shown.", {})
    scores = {key: float(np.mean([_validation_score(each, key) for each in sets])) for key in first.scores}
    best = max(round(score, _TIE_DIGITS) for score in scores.values())
    tied = [key for key, score in scores.items() if round(score, _TIE_DIGITS) == best]
    covered = "" if present == len(first.classes) else f", which cover {present} of {len(first.classes)} classes"
    shared = "" if len(tied) == 1 else f" {len(tied)} pooling methods tie; fewer tiles and no smoothing are preferred."
    sentence = (
        f"The pooling method {tied[0].title} was chosen for its balanced accuracy of {best:.3f} on {rows.sum()} "
        f"validation {unit}s{covered}, the highest of {counted(len(scores), 'pooling method')}.{shared}"
    )
    return PoolingChoice(tied[0], sentence, scores)


def score_predictions(predictions: Predictions) -> dict[str, float | None]:
    """Compute `SLIDE_METRICS` on the labelled rows; None where undefined."""
    rows = predictions.labels >= 0
    weights = np.ones((int(rows.sum()), 1))
    scores = weighted_scores(predictions.labels[rows], predictions.probabilities[rows], weights, SLIDE_METRICS)
    return {name: float(value[0]) if np.isfinite(value[0]) else None for name, value in scores.items()}


def _validation_score(scored: SlideSet, key: PoolingKey) -> float:
    value = score_predictions(scored.predictions(key, "slide", VALIDATION))[CHOSEN_BY]
    return float("nan") if value is None else value


_COLUMNS = [
    "split", "level", "pooling", "smoothed", "chosen", "metric", "value", "low", "high", "reason", "over", "labelled",
    "patients", "single",
]  # fmt: skip


def _metric_rows(
    scored: SlideSet, split: str, level: Level, chosen: PoolingKey | None, resamples: int, seed: int
) -> list[dict[str, object]]:
    by_key = {key: scored.predictions(key, level, split) for key in scored.scores}
    if not by_key:
        return []
    first = next(iter(by_key.values()))
    rows = first.labels >= 0
    labels, groups = first.labels[rows], first.groups[rows]
    probabilities = {key: table.probabilities[rows] for key, table in by_key.items()}
    intervals = bootstrap(_statistics(labels, probabilities), groups, resamples, seed)
    n_patients = len(np.unique(group_numbers(groups)))
    single = n_patients == int(((scored.splits == split) & (scored.labels >= 0)).sum())
    result: list[dict[str, object]] = []
    for key, table in by_key.items():
        for metric, value in score_predictions(table).items():
            interval = intervals[_name(key, metric)]
            undefined = value is None
            reason = explain_undefined(metric, labels, scored.classes, unit=level) if undefined else interval.reason
            over = describe_averaging(metric, labels, scored.classes, unit=level)
            result.append(
                {
                    "split": split, "level": level, "pooling": key.pooling, "smoothed": key.smoothed,
                    "chosen": key == chosen, "metric": metric, "value": value, "low": interval.low,
                    "high": interval.high, "reason": reason, "over": "" if undefined else over, "labelled": len(labels),
                    "patients": n_patients, "single": single,
                }
            )  # fmt: skip
    return result


def _statistics(
    labels: Int64[np.ndarray, " n"], probabilities: Mapping[PoolingKey, Float32[np.ndarray, "n c"]]
) -> Statistics:
    def statistics(weights: Float[np.ndarray, "n r"]) -> dict[str, Float[np.ndarray, " r"]]:
        return {
            _name(key, metric): values
            for key, table in probabilities.items()
            for metric, values in weighted_scores(labels, table, weights, SLIDE_METRICS).items()
        }

    return statistics


def _name(key: PoolingKey, metric: str) -> str:
    return f"{key.pooling} {key.smoothed} {metric}"


def _slide_rows(table: pd.DataFrame, scored: SlideSet, chosen: PoolingKey | None) -> pd.DataFrame:
    names = np.array([*scored.classes, ""], dtype=object)  # the last name stands for the unknown label, -1
    rows = pd.DataFrame(
        {
            "slide": scored.slides,
            "patient": scored.patients,
            "label": names[scored.labels],
            "split": scored.splits,
            "tiles": table.drop_duplicates("slide").set_index("slide")["tiles"].reindex(scored.slides).to_numpy(),
        }
    )
    if chosen is None:
        for key, scores in scored.scores.items():
            rows[key.title] = names[scores.argmax(axis=1)]
        return rows
    pooled = table[(table["pooling"] == chosen.pooling) & (table["smoothed"] == chosen.smoothed)]
    columns = ["predicted", "tied", *(SCORE_PREFIX + name for name in scored.classes)]
    return rows.join(pooled.set_index("slide")[columns], on="slide")


def _failed_slides(slides: pd.DataFrame, scored: SlideSet, failures: Mapping[str, str]) -> pd.DataFrame:
    scored_names = {str(name) for name in scored.slides.tolist()}
    listed = [str(name) for name in slides["slide"]]
    missing = [
        name for name in (*listed, *(name for name in failures if name not in set(listed))) if name not in scored_names
    ]
    return pd.DataFrame({"slide": missing, "reason": [failures.get(name, NOT_SCORED) for name in missing]})


def _notes(scored: SlideSet, failed: int) -> list[str]:
    unlabelled = bool((scored.labels < 0).all())  # nothing is evaluated, so missing labels and patients do not matter
    counts = {
        "Slides without scores, excluded from every metric": failed,
        "Scored slides without a label, listed but not evaluated": 0 if unlabelled else int((scored.labels < 0).sum()),
        "Slides of the training split, not evaluated": int((scored.splits == TRAIN).sum()),
        "Patients with slides of different classes, not evaluated per patient": len(scored.mixed_patients()),
        "Patients with slides in several splits, which may inflate the scores of held-out splits": len(
            scored.crossing_patients()
        ),
    }
    notes = [f"{note}: {count:,}." for note, count in counts.items() if count]
    return [*notes, *unknown_patients_note(sum(scored.unknown_patients().values()))]
