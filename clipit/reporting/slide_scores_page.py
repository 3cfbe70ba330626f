"""Page and summary of slide scores: metrics by pooling, the chosen pooling method, all slides, and failed slides."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from clipit.errors import counted
from clipit.evaluation.intervals import LEVEL
from clipit.evaluation.slide_metrics import SLIDE_METRICS, VALIDATION, SlideEvaluation
from clipit.evaluation.slide_scores import SCORE_PREFIX
from clipit.evaluation.slide_sets import ALL_SLIDES, PoolingKey, describe_patients, of_patients
from clipit.reporting.html import Link, PageSection, Part, Rows, Table, Text, facts_table, page
from clipit.reporting.subtyping_table import CAUTION
from clipit.reporting.tables import LABELS, key_value_table, markdown_line, markdown_table, number, with_interval

_MetricTable = tuple[str, tuple[str, ...], list[list[object]]]  # caption, header and rows
_PUBLISHED = "Zero-shot scores by prompts"
_BY_MEAN = PoolingKey("mean", False).title
MAX_SHOWN = 40
"""Maximum number of slides in a table that is not collapsed, and of failed slides listed in the summary."""
POOLING_TEXT = (
    "`top1` to `top100`: mean of the K highest scores of a class among the slide's tiles, or of all scores if there "
    "are fewer; the K tiles can differ between classes (MI-Zero, Lu et al., CVPR 2023). `mean`: mean over all tiles. "
    "`share`: fraction of tiles predicted as the class. `smoothed`: the scores of each tile are first averaged over "
    "the 3 x 3 cells around it that contain tissue. The predicted class is the one with the highest score."
)
LEVEL_TEXT = (
    "A patient's score is the mean score of the patient's slides. AUROC is computed from each score minus the mean of "
    "the slide's scores, as the one-vs-rest macro mean (with two classes, only for the second)."
)


def slide_scores_page(
    title: str,
    note: str,
    evaluation: SlideEvaluation,
    facts: Mapping[str, object],
    pages: Mapping[str, str] | None = None,
    published: Sequence[Table] = (),
) -> str:
    """Render the page as HTML.

    Args:
        note: Warning shown at the top of the page; "" for none.
        evaluation: Evaluation of the slides; without labels, the page only lists their scores.
        facts: Facts about the classifier, the prompts and the tiles.
        pages: Path of each slide's own page by slide, relative to this page.
        published: Tables of zero-shot scores by prompts, with published scores (`subtyping_tables`).
    """
    sections = [PageSection("Scores", _scores(evaluation))]
    if evaluation.choice.key is not None:
        every: list[Part] = [_choice(evaluation), *_show_tables(_metric_tables(evaluation))]
        every += [Text(remark) for remark in _gaps(evaluation.scores, evaluation.resamples)]
        sections.append(PageSection("All pooling methods", every, folded=True))
    if published:
        sections.append(PageSection(_PUBLISHED, [Text(CAUTION), *published]))
    sections.append(PageSection("Slides", _slides(evaluation, pages or {})))
    if len(evaluation.failed):
        rows = evaluation.failed.values.tolist()
        failed = Table(("slide", "reason"), rows, caption="Slides without scores, excluded from every metric", left=2)
        sections.append(PageSection("Failed slides", [failed]))
    sections.append(PageSection("How slides are scored", [Text(POOLING_TEXT), Text(LEVEL_TEXT)]))
    sections.append(PageSection("Provenance", [facts_table(facts)]))
    return page(title, note, sections, verdict=_verdict(evaluation))


def slide_scores_summary(
    title: str,
    note: str,
    evaluation: SlideEvaluation,
    facts: Mapping[str, object],
    published: Sequence[Table] = (),
) -> str:
    """Compose the summary as Markdown that is also readable as plain text.

    Args:
        note: Warning shown first; "" for none.
        facts: Facts about the classifier, the prompts and the tiles.
        published: Tables of zero-shot scores by prompts, with published scores (`subtyping_tables`).
    """
    parts = [f"# {markdown_line(title)}"]
    parts += [f"> **Note.** {markdown_line(note)}"] if note else []
    parts += [f"**{markdown_line(_verdict(evaluation))}**"] if _verdict(evaluation) else []
    parts.append(markdown_line(evaluation.choice.sentence))
    for caption, header, rows in _main_tables(evaluation):
        parts += [f"{markdown_line(caption)}:", markdown_table(header, rows)]
    if len(evaluation.slides) and _unlabelled(evaluation):
        listed = evaluation.slides[["slide", "tiles", _BY_MEAN]]
        header = ("slide", "tiles", "class (mean over tiles)")
        parts.append(markdown_table(header, listed.head(MAX_SHOWN).values.tolist()))
        parts += [f"and {len(listed) - MAX_SHOWN} more"] if len(listed) > MAX_SHOWN else []
    remarks = [*_reliability(evaluation), *evaluation.notes]
    if remarks:
        parts.append("\n".join(f"- {markdown_line(remark)}" for remark in remarks))
    if published:
        parts += [f"## {_PUBLISHED}", CAUTION]
        for table in published:
            parts += [f"{table.caption}:", markdown_table(table.header, table.rows, left=table.left)]
    if len(evaluation.failed):
        shown = evaluation.failed.head(MAX_SHOWN).values.tolist()
        more = len(evaluation.failed) - len(shown)
        parts += ["## Failed slides", markdown_table(("slide", "reason"), shown, left=2)]
        parts += [f"and {more} more"] if more else []
    parts += ["## Provenance", key_value_table(facts)]
    return "\n\n".join(parts) + "\n"


def _scores(evaluation: SlideEvaluation) -> list[Part]:
    remarks = [*_reliability(evaluation), *evaluation.notes]
    tables = _show_tables(_main_tables(evaluation))
    return [Text(evaluation.choice.sentence), *tables, *(Text(remark) for remark in remarks)]


def _show_tables(tables: Sequence[_MetricTable]) -> list[Table]:
    return [Table(header, rows, caption=caption) for caption, header, rows in tables]


def _main_tables(evaluation: SlideEvaluation) -> list[_MetricTable]:
    """Tabulate the scores with the chosen pooling method on slides that were not used to choose it.

    If no pooling method was chosen, tabulate the scores with all pooling methods.
    """
    key, scores = evaluation.choice.key, evaluation.scores
    if key is None:
        return _metric_tables(evaluation)
    rows: list[list[object]] = []
    for (split, level), part in scores[scores["chosen"]].groupby(["split", "level"], sort=False):
        if split != VALIDATION and part["labelled"].iloc[0] and not _repeats_slides(part):
            rows.append([_describe(evaluation, str(split), str(level), part), *_cells(part)])
    header = ("scored on", *(LABELS[metric] for metric in SLIDE_METRICS))
    return [(f"Pooled by {key.title}", header, rows)] if rows else []


def _metric_tables(evaluation: SlideEvaluation) -> list[_MetricTable]:
    """Return a table per split and level: one row per pooling."""
    tables: list[_MetricTable] = []
    for (split, level), part in evaluation.scores.groupby(["split", "level"], sort=False):
        if not part["labelled"].iloc[0] or _repeats_slides(part):
            continue
        rows: list[list[object]] = []
        for (pooling, smoothed, chosen), scores in part.groupby(["pooling", "smoothed", "chosen"], sort=False):
            name = PoolingKey(str(pooling), bool(smoothed)).title
            rows.append([f"{name}, chosen" if chosen else name, *_cells(scores)])
        header = ("pooling", *(LABELS[metric] for metric in SLIDE_METRICS))
        tables.append((_describe(evaluation, str(split), str(level), part), header, rows))
    return tables


def _repeats_slides(part: pd.DataFrame) -> bool:
    """Check whether scores per patient repeat those per slide, because every patient has one slide."""
    return bool(part["single"].iloc[0]) and part["level"].iloc[0] == "patient"


def _describe(evaluation: SlideEvaluation, split: str, level: str, part: pd.DataFrame) -> str:
    labelled, patients = int(part["labelled"].iloc[0]), int(part["patients"].iloc[0])
    unknown = _unknown_patients(evaluation, split)
    if level == "patient":
        return f"{split}, per patient: {describe_patients(labelled, unknown, 'labelled patient')}"
    return f"{split}, per slide: {counted(labelled, 'labelled slide')} {of_patients(patients, unknown)}"


def _unknown_patients(evaluation: SlideEvaluation, split: str) -> int:
    """Count the labelled slides of a split without a known patient."""
    slides = evaluation.slides
    return int(((slides["split"] == split) & (slides["label"] != "") & (slides["patient"] == "")).sum())


def _cells(scores: pd.DataFrame) -> list[str]:
    """Format the scores with one pooling method and their intervals, one cell per metric."""
    by_metric = scores.set_index("metric")[["value", "low", "high"]].to_dict("index")
    return [_score_cell(by_metric[metric]) for metric in SLIDE_METRICS]


def _score_cell(row: Mapping[Any, Any]) -> str:
    value, low, high = (None if pd.isna(row[name]) else float(row[name]) for name in ("value", "low", "high"))
    return with_interval(value, low, high)


def _verdict(evaluation: SlideEvaluation) -> str:
    """State the score with the chosen pooling method on the test slides; "" if there is none."""
    key = evaluation.choice.key
    rows = evaluation.scores.query("chosen and level == 'slide' and split == 'test' and metric == 'balanced_accuracy'")
    if key is None or rows.empty or pd.isna(rows["value"].iloc[0]):
        return ""
    row = rows.iloc[0].to_dict()
    return (
        f"Balanced accuracy {_score_cell(row)} on {counted(int(row['labelled']), 'test slide')} "
        f"{of_patients(int(row['patients']), _unknown_patients(evaluation, 'test'))}, pooled by {key.title}"
    )


def _reliability(evaluation: SlideEvaluation) -> list[str]:
    """Describe the intervals, and list the reasons why scores or intervals are missing in the main tables."""
    scores, remarks = evaluation.scores, list[str]()
    parts: dict[str, list[str]] = {}  # splits and levels by remark
    if scores["low"].notna().any():
        remarks.append(
            f"In brackets: {LEVEL:.0%} percentile bootstrap intervals over patients, {evaluation.resamples} resamples, "
            f"seed {evaluation.seed}."
        )
    single = scores.loc[scores["single"] & (scores["labelled"] > 0), "split"].drop_duplicates()
    if len(single):
        same = "no known patient has several slides, so scores per patient are the same as scores per slide"
        parts[same] = [str(split) for split in single]
    smallest = scores[(scores["level"] == "slide") & (scores["labelled"] > 0)].drop_duplicates("split")
    for split, labelled in zip(smallest["split"], smallest["labelled"], strict=True):
        if labelled < 100:
            remark = f"one slide accounts for {100 / labelled:.1f} percentage points of accuracy"
            parts.setdefault(remark, []).append(str(split))
    remarks += [f"{', '.join(places)}: {remark}." for remark, places in parts.items()]
    if _unlabelled(evaluation):
        return remarks
    if evaluation.choice.key is not None:
        scores = scores[scores["chosen"] & (scores["split"] != VALIDATION)]
    return remarks + _gaps(scores, evaluation.resamples)


def _gaps(scores: pd.DataFrame, resamples: int) -> list[str]:
    """List the reasons why scores or intervals are missing, and the classes that averages cover if some are absent."""
    scores, parts = scores[~(scores["single"] & (scores["level"] == "patient"))], dict[str, list[str]]()
    missing = scores[scores["reason"].astype(bool) & (scores["value"].isna() | bool(resamples))]
    all_poolings = _pooling_titles(scores)
    metrics: dict[tuple[str, str, str], set[str]] = {}  # names by place, kind and reason
    for (split, level, reason, metric), part in missing.groupby(["split", "level", "reason", "metric"], sort=False):
        kind = "no score" if part["value"].isna().all() else "no interval"
        poolings = _pooling_titles(part)
        place = f"{split} per {level}" + ("" if poolings == all_poolings else f" with {', '.join(poolings)}")
        metrics.setdefault((place, kind, str(reason)), set()).add(str(metric))
    for (place, kind, reason), names in metrics.items():
        listed = ", ".join(LABELS[name] for name in SLIDE_METRICS if name in names)
        metric_names = "" if len(names) == len(SLIDE_METRICS) else f" for {listed}"
        parts.setdefault(f"{kind}{metric_names}: {reason}", []).append(place)
    covered = scores[scores["over"].astype(bool)].drop_duplicates(["split", "level", "over"])
    for split, level, over in covered[["split", "level", "over"]].itertuples(index=False):
        parts.setdefault(f"averages over classes are computed {over}", []).append(f"{split} per {level}")
    joined = {remark: ("; " if " with " in " ".join(places) else ", ").join(places) for remark, places in parts.items()}
    return [f"{places}: {remark}." for remark, places in joined.items()]


def _pooling_titles(scores: pd.DataFrame) -> list[str]:
    distinct = scores[["pooling", "smoothed"]].drop_duplicates()
    return [PoolingKey(str(pooling), bool(smoothed)).title for pooling, smoothed in distinct.itertuples(index=False)]


def _unlabelled(evaluation: SlideEvaluation) -> bool:
    """Check whether no slide has a label, in which case nothing is evaluated."""
    return bool((evaluation.slides["label"] == "").all())


def _choice(evaluation: SlideEvaluation) -> Table:
    chosen = evaluation.choice.key
    rows = [
        [key.title, number(score), "chosen" if key == chosen else ""] for key, score in evaluation.choice.scores.items()
    ]
    caption = "Balanced accuracy on validation slides"
    return Table(("pooling", "balanced accuracy", ""), rows, caption=caption)


def _slides(evaluation: SlideEvaluation, pages: Mapping[str, str]) -> list[Part]:
    slides, key = evaluation.slides, evaluation.choice.key
    if slides.empty:
        return [Text("No slide has scores.")]
    empty = [name for name in ("patient", "label") if (slides[name] == "").all()]
    empty += ["split"] if (slides["split"] == ALL_SLIDES).all() else []
    slides = slides.drop(columns=empty)
    if _BY_MEAN in slides.columns:  # the pooling that the console shows comes first
        slides.insert(list(slides.columns).index("tiles") + 1, _BY_MEAN, slides.pop(_BY_MEAN))
    header = [column.removeprefix(SCORE_PREFIX) for column in slides.columns]
    rows = [
        [Link(name, pages[name]) if name in pages else name, *(_show(value) for value in row)]
        for name, *row in slides.itertuples(index=False)
    ]
    caption = f"Scores by {key.title}" if key else "Class predicted by each pooling method"
    if len(rows) <= MAX_SHOWN:
        left = 4 - len(empty) if key else len(header)  # if no pooling method was chosen, the cells are class names
        return [Table(header, rows, caption=caption, left=left)]
    return [Rows(header, rows, caption)]


def _show(value: object) -> object:
    """Format a cell of the slide table: scores with three digits, `tied` as a word."""
    if isinstance(value, bool):
        return "yes" if value else ""
    return number(value) if isinstance(value, float) else value
