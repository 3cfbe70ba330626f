"""Sections and verdict of an adaptation study, which evaluates a VLM before and after adaptation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import stdev
from typing import Any

from clipit.errors import counted
from clipit.evaluation.intervals import NO_VARIATION
from clipit.evaluation.model_comparison import ModelDifference, Subject, SubjectScore
from clipit.reporting.adapt_facts import fact_label, fact_text
from clipit.reporting.html import Figure, PageSection, Part, Rows, Table, Text, facts_table
from clipit.reporting.tables import LABELS, difference, interval, number
from clipit.reporting.training_curves import Series

BEFORE, TEXT = "before", "text"
"""The VLM without adaptation, and the arm that learns from text."""
ZERO_SHOT, PROBE = "zero-shot", "linear probe"
"""Tasks on the tiles of the configuration."""
MODELS = {
    BEFORE: "the VLM before adaptation",
    TEXT: "adapted with the texts paired with each image",
    "shuffled_text": "control: adapted with texts from other patients or from other images",
    "images": "control: adapted with images alone",
}
"""Models of the study."""
CURVES, SEED_SCORES = "training.png", "zero_shot.png"
_MAIN = "balanced_accuracy"
_CONTROLS = {"shuffled_text": "with shuffled texts", "images": "with images alone"}
_TILES = (
    "Scores are means over seeds (± standard deviation) on the test tiles, on which no VLM was adapted. In brackets: "
    "95% percentile bootstrap interval of the mean, over groups where known. Zero-shot classification uses no labels. "
    "The linear probe is fitted on the image embeddings, with the labels that `tiles.labels` selects."
)
_COMPARED = (
    "Differences are paired by item, group and seed. A model is better or worse than its reference if both intervals "
    "of the difference, over groups and over seeds, are on the same side of 0. The result is `undecided` if an "
    "interval is undefined: with one seed, with fewer than ten groups, or if all resamples or all seeds agree. In all "
    "other cases, the result is inconclusive (`open`). p: paired t-test over seeds, Holm-corrected over the "
    "differences of the same task and metric."
)
_CONTROLS_TEXT = (
    "A gain is due to the text only if the arm `text` is better than both controls. The control `shuffled_text` uses "
    "the same images, texts and number of steps; the control `images` uses the same images. A gain that a control also "
    "shows comes from the images, or from texts in general."
)
_RETRIEVAL = (
    "Recall@k (p@k in PLIP's tables): fraction of queries with a true match among the k nearest items; in brackets, "
    "the fold enrichment, that is, the ratio to the score of k random items. The matches of an image are the texts of "
    "its example (its caption, or all snippets of its patient's reports). Values of k that cover the whole gallery are "
    "omitted. Intervals are over the groups of the queries; the gallery is not resampled. Scores depend on the size of "
    "the gallery and cannot be compared between data sets."
)
_FORGETTING = (
    "Zero-shot classification on test sets that the VLM was not adapted to. Lower scores are the cost of the "
    "adaptation."
)


@dataclass(frozen=True)
class AdaptContent:
    """Content of the page.

    Attributes:
        forgetting: Names of the test sets that the VLM was not adapted to; their tasks are `forgetting_task(name)`.
        directions: Retrieval tasks between held-out images and texts.
        scores: Score of each task, model and metric.
        contrasts: Differences between models.
        class_match: Retrieval by class: for each task, measure and k, the mean over seeds and the score expected by
            chance, by model.
        held_out: Description of the retrieved images and texts: split and counts.
        probe_labels: Number of labels used to fit the linear probe; None without a probe.
        training: Details of each adaptation, by arm and seed.
        examples: Counts of the training data, by arm.
        notes: Remarks on missing evaluations and on the limits of the scores.
        curves: Loss over steps, by name of the series.
        facts: Provenance of the study.
    """

    scores: Sequence[SubjectScore]
    contrasts: Sequence[ModelDifference]
    forgetting: Sequence[str] = ()
    directions: Sequence[str] = ()
    class_match: Mapping[tuple[str, str, int], Mapping[str, tuple[float | None, float | None]]] = field(
        default_factory=dict
    )
    held_out: str = ""
    probe_labels: int | None = None
    training: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    examples: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    curves: Series = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def score(self, task: str, model: str, metric: str = _MAIN) -> SubjectScore | None:
        """Return the score of a model on a task; None if it was not evaluated."""
        matching = (each for each in self.scores if each.subject == Subject(task, model) and each.metric == metric)
        return next(matching, None)

    def contrast(self, subject: Subject, reference: Subject, metric: str = _MAIN) -> ModelDifference | None:
        """Return the difference between two models; None if it was not computed."""
        keys = (subject, reference, metric)
        matching = (each for each in self.contrasts if (each.subject, each.reference, each.metric) == keys)
        return next(matching, None)


def forgetting_task(name: str) -> str:
    """Return the name of the zero-shot task on a different test set."""
    return f"{ZERO_SHOT}, {name}"


def adapt_verdict(content: AdaptContent) -> str:
    """State whether the text improved the VLM, how a linear probe compares, and where scores on other sets fell."""
    gain = content.contrast(Subject(ZERO_SHOT, TEXT), Subject(ZERO_SHOT, BEFORE))
    if gain is None and content.score(ZERO_SHOT, BEFORE) is not None:
        return f"No verdict: no adaptation of the arm {TEXT!r} has finished (adapt.arms)."
    if gain is None:
        missing = "labelled test tiles" if content.score(PROBE, BEFORE) is None else "prompts"
        return f"No verdict: zero-shot classification could not be evaluated without {missing}."
    return " ".join(part for part in (_gain(content, gain), _probe(content), _forgotten(content)) if part)


def _gain(content: AdaptContent, gain: ModelDifference) -> str:
    before, after = (content.score(ZERO_SHOT, model) for model in (BEFORE, TEXT))
    change = f"from {_mean(before)} to {_mean(after)} ({_difference(gain)})"
    name = f"zero-shot {LABELS[_MAIN]}"
    if gain.outcome == "undecided":
        return f"Not decided ({gain.reason}): {name} changed {change}."
    if gain.outcome == "open":
        return f"No gain shown: {name} changed {change}."
    if gain.outcome == "worse":
        return f"Worse than before: {name} fell {change}."
    controls = {arm: content.contrast(Subject(ZERO_SHOT, TEXT), Subject(ZERO_SHOT, arm)) for arm in _CONTROLS}
    compared = {arm: contrast for arm, contrast in controls.items() if contrast is not None}
    missing = [_CONTROLS[arm] for arm in controls if arm not in compared]
    if not missing and all(contrast.outcome == "better" for contrast in compared.values()):
        return f"The text helped: {name} rose {change}, and more than {' and '.join(_CONTROLS.values())}."
    others = {arm: contrast for arm, contrast in compared.items() if contrast.outcome != "better"}
    limits = [_limit(content, arm, contrast) for arm, contrast in others.items()]
    limits += [f"Not compared with an adaptation {' or '.join(missing)}."] if missing else []
    start = "Better than before"
    if any(_rose(content, arm) for arm in others):
        start = "Better than before, but so is a control"
    elif any(contrast.outcome != "undecided" for contrast in others.values()):
        start = "Better than before, but not shown to be better than a control"
    elif others:
        start = "Better than before, but the comparison with a control is undecided"
    return " ".join([f"{start}: {name} rose {change}.", *limits])


def _rose(content: AdaptContent, arm: str) -> bool:
    """Check whether a control is better than the VLM before adaptation."""
    contrast = content.contrast(Subject(ZERO_SHOT, arm), Subject(ZERO_SHOT, BEFORE))
    return contrast is not None and contrast.outcome == "better"


def _limit(content: AdaptContent, arm: str, contrast: ModelDifference) -> str:
    """State that the gain is less than, or not shown to exceed, the change with a control."""
    change = f"the change {_CONTROLS[arm]} ({_difference_from_before(content, arm)})"
    if contrast.outcome == "undecided":
        return f"It is undecided whether this is more than {change}: {contrast.reason}."
    return f"This is {'less' if contrast.outcome == 'worse' else 'not shown to be more'} than {change}."


def _difference_from_before(content: AdaptContent, arm: str) -> str:
    contrast = content.contrast(Subject(ZERO_SHOT, arm), Subject(ZERO_SHOT, BEFORE))
    return number(None) if contrast is None else _difference(contrast)


def _probe(content: AdaptContent) -> str:
    compared = content.contrast(Subject(ZERO_SHOT, TEXT), Subject(PROBE, BEFORE))
    if compared is None or content.probe_labels is None:
        return ""
    probe = f"a linear probe on the frozen VLM with {counted(content.probe_labels, 'label')}"
    score = f"({_mean(content.score(PROBE, BEFORE))})"
    if compared.outcome == "better":
        return f"The adapted VLM outperforms {probe} {score}."
    if compared.outcome == "worse":
        return f"If labels are available, use the probe: {probe} is better {score}."
    if compared.outcome == "undecided":
        return f"{probe[0].upper()}{probe[1:]} scores {_mean(content.score(PROBE, BEFORE))}."
    return f"The adapted VLM is not shown to differ from {probe} {score}."


def _forgotten(content: AdaptContent) -> str:
    worse = []
    for name in content.forgetting:
        task = forgetting_task(name)
        lost = content.contrast(Subject(task, TEXT), Subject(task, BEFORE))
        if lost is not None and lost.outcome == "worse":
            worse.append(f"{name} {_difference(lost)}")
    return f"Worse on other sets: {'; '.join(worse)}." if worse else ""


def adapt_sections(content: AdaptContent) -> list[PageSection]:
    """Build the sections of the page and the Markdown."""
    controls = [Text(_CONTROLS_TEXT)] if any(content.score(ZERO_SHOT, arm) for arm in _CONTROLS) else []
    sections = [PageSection("Before and after", [*_score_parts(content), *controls, *map(Text, content.notes)])]
    differences = _difference_tables(content, (ZERO_SHOT, PROBE))
    if differences:
        sections.append(PageSection("Differences", [*differences, Text(_COMPARED)]))
    if content.directions or content.class_match:
        explained = [] if differences or not content.directions else [Text(_COMPARED)]
        sections.append(PageSection("Retrieval", [*_retrieval_parts(content), *explained]))
    if content.forgetting:
        tasks = [forgetting_task(name) for name in content.forgetting]
        parts = [_model_table(content, tasks), *_difference_tables(content, tasks), Text(_FORGETTING)]
        sections.append(PageSection("Forgetting", parts))
    training: list[Part] = []
    if content.curves:
        training.append(Figure(Path(CURVES), "Contrastive loss by step", source="metrics.jsonl of each adaptation"))
    for caption, rows in (
        ("Training data of each arm", content.examples),
        ("Adaptations", content.training),
    ):
        if rows:
            training.append(_transposed(caption, rows))
    if training:
        sections.append(PageSection("Training", training))
    return [*sections, PageSection("Provenance", [facts_table(content.facts)])]


def _score_parts(content: AdaptContent) -> list[Part]:
    tasks = [task for task in (ZERO_SHOT, PROBE) if any(each.subject.task == task for each in content.scores)]
    if not tasks:
        return [Text("Classification was not evaluated: this needs labelled test tiles.")]
    parts: list[Part] = [_model_table(content, tasks)]
    if seed_scores(content):
        caption = "Zero-shot balanced accuracy: one dot per seed; dashed line: before adaptation"
        parts.append(Figure(Path(SEED_SCORES), caption, source="adapt.json: scores"))
    models = dict.fromkeys(each.subject.model for each in content.scores)
    models_text = "Models: " + ", ".join(f"`{model}` ({MODELS[model]})" for model in models) + "."
    return [*parts, Text(models_text), Text(_TILES)]


def seed_scores(content: AdaptContent) -> dict[str, dict[str, float | None]]:
    """Return the zero-shot scores of each model by seed, for a plot."""
    by_model: dict[str, dict[str, float | None]] = {}
    for model in dict.fromkeys(each.subject.model for each in content.scores):
        score = content.score(ZERO_SHOT, model)
        if score is not None:
            seeds = [*score.seeds.items()][: 1 if model == BEFORE else None]
            by_model[model] = {f"seed {seed}": value for seed, value in seeds}
    return by_model


def _model_table(content: AdaptContent, tasks: Sequence[str]) -> Table:
    """Tabulate the scores, one row per task and model."""
    chosen = [each for each in content.scores if each.subject.task in tasks]
    metrics = list(dict.fromkeys(each.metric for each in chosen))
    rows: list[list[object]] = []
    subjects = dict.fromkeys(each.subject for each in chosen)
    for subject in sorted(subjects, key=lambda subject: tasks.index(subject.task)):
        by_metric = {each.metric: each for each in chosen if each.subject == subject}
        cells = [_cell(by_metric[metric]) if metric in by_metric else "" for metric in metrics]
        rows.append([subject.task, subject.model, *cells])
    header = ("task", "model", *(LABELS.get(metric, metric) for metric in metrics))
    return Table(header, rows, left=2, source="adapt.json: scores")


def _difference_tables(content: AdaptContent, tasks: Sequence[str]) -> list[Table | Rows | Text]:
    """Tabulate the differences in the main metric, and in a collapsed table those in the other metrics.

    If all differences in the other metrics are undecided for the same reason, a sentence replaces the collapsed table.
    """
    header = ("task", "difference", "metric", "mean", "over groups", "over seeds", "p (Holm)", "outcome")
    chosen = [each for each in content.contrasts if each.subject.task in tasks]
    main = [_difference_row(each) for each in chosen if each.metric == _MAIN]
    others = [each for each in chosen if each.metric != _MAIN]
    rest = [_difference_row(each) for each in others]
    tables: list[Table | Rows | Text] = [Table(header, main, left=3, source="adapt.json: contrasts")] if main else []
    reasons = dict.fromkeys(_short(each.reason) for each in others)
    if rest and all(each.outcome == "undecided" for each in others) and len(reasons) == 1:
        return [*tables, Text(f"All differences in {_listed(chosen)} are undecided: {next(iter(reasons))}.")]
    return tables + ([Rows(header, rest, f"Differences in {_listed(chosen)}", "adapt.json: contrasts")] if rest else [])


def _listed(contrasts: Sequence[ModelDifference]) -> str:
    metrics = dict.fromkeys(LABELS.get(each.metric, each.metric) for each in contrasts if each.metric != _MAIN)
    tasks = dict.fromkeys(each.subject.task for each in contrasts if each.metric != _MAIN)
    return f"{', '.join(metrics)} ({', '.join(tasks)})"


def _difference_row(contrast: ModelDifference) -> list[object]:
    same = contrast.subject.task == contrast.reference.task
    reference = contrast.reference.model if same else f"{contrast.reference.task}, {contrast.reference.model}"
    groups, seeds, p = contrast.over_groups, contrast.over_seeds, contrast.p_holm
    return [
        contrast.subject.task,
        f"{contrast.subject.model} - {reference}",
        LABELS.get(contrast.metric, contrast.metric),
        number(contrast.mean, signed=True),
        interval(groups.low, groups.high, signed=True) or _short(groups.reason),
        interval(seeds.low, seeds.high, signed=True) or _short(seeds.reason),
        _short(p.reason) if p.p is None else "< 0.001" if p.p < 0.001 else number(p.p),
        contrast.outcome,
    ]


def _short(reason: str) -> str:
    """Return the first clause of a reason, for a cell."""
    return NO_VARIATION if reason.startswith(NO_VARIATION) else reason.partition(";")[0]


def _retrieval_parts(content: AdaptContent) -> list[Text | Table | Rows]:
    parts: list[Text | Table | Rows] = []
    models = list(dict.fromkeys(each.subject.model for each in content.scores))
    if content.directions:
        rows: list[list[object]] = []
        chosen = [each for each in content.scores if each.subject.task in content.directions]
        for task, metric in dict.fromkeys((each.subject.task, each.metric) for each in chosen):
            scores = {model: content.score(task, model, metric) for model in models}
            random = next((score.random for score in scores.values() if score is not None), None)
            cells = [_with_fold(score) if score is not None else "" for score in scores.values()]
            rows.append([task, metric, number(random), *cells])
        parts.append(Text(f"Held-out examples: {content.held_out}."))
        header = ("query to gallery", "measure", "random", *models)
        parts.append(Table(header, rows, left=2, source="adapt.json: scores"))
        parts += _difference_tables(content, content.directions)
        parts.append(Text(_RETRIEVAL))
    if content.class_match:
        lines: list[list[object]] = []
        for (task, measure, k), by_model in content.class_match.items():
            chance = next((random for _, random in by_model.values()), None)
            lines.append([task, f"{measure}@{k}", number(chance), *(number(by_model[m][0]) for m in by_model)])
        header = ("query to gallery", "measure", "random", *next(iter(content.class_match.values())))
        parts.append(Table(header, lines, left=2, caption="Retrieval by class, and caption retrieval, on test tiles"))
    return parts


def _transposed(caption: str, rows: Mapping[str, Mapping[str, object]]) -> Table:
    names = list(dict.fromkeys(name for facts in rows.values() for name in facts))
    lines = [[fact_label(name), *(fact_text(facts.get(name, "")) for facts in rows.values())] for name in names]
    return Table(("quantity", *rows), lines, caption=caption)


def _with_fold(score: SubjectScore) -> str:
    fold = "" if score.mean is None or not score.random else f" ({score.mean / score.random:.1f} x)"
    return number(score.mean) + fold


def _cell(score: SubjectScore) -> str:
    if score.mean is None:
        return f"n/a ({score.reason})"
    values = [value for value in score.seeds.values() if value is not None]
    spread = stdev(values) if len(values) > 1 else 0.0
    parts = [
        number(score.mean),
        f"± {number(spread)}" if spread else "",
        interval(score.interval.low, score.interval.high),
    ]
    return " ".join(part for part in parts if part)


def _mean(score: SubjectScore | None) -> str:
    return number(None if score is None else score.mean)


def _difference(contrast: ModelDifference) -> str:
    low, high = contrast.over_groups.low, contrast.over_groups.high
    if low is None or high is None:
        return difference(contrast.mean, None)
    seeds = interval(contrast.over_seeds.low, contrast.over_seeds.high, signed=True)
    return f"{difference(contrast.mean, (low, high))} over groups{f', {seeds} over seeds' if seeds else ''}"
