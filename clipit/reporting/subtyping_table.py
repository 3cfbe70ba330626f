"""Table of zero-shot slide subtyping in the format of MI-Zero: scores by prompts and K, with published scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from clipit.evaluation.slide_sets import PoolingKey
from clipit.reporting.html import Table
from clipit.reporting.tables import interval, number

CAUTION = (
    "Published scores, if any, are shown for context, not as a baseline: they were computed on other slides, "
    "at other resolutions and with other prompts, and some pooling methods may have been selected on the same slides."
)
_MI_ZERO = "MI-Zero's repository, results file for RCC subtyping: 225 TCGA slides, 50 sampled prompt sets"
_KEEP = "KEEP (arXiv 2412.13126), repository's README, table of zero-shot cancer subtyping"
_CONCH = "CONCH (Lu et al., Nature Medicine 2024), Results section"
_KEEP_MODELS = ("PLIP", "QuiltNet", "MI-Zero", "CONCH", "KEEP")
_KEEP_SCORES = {
    "BRCA": (0.519, 0.500, 0.633, 0.727, 0.774),
    "NSCLC": (0.699, 0.667, 0.753, 0.901, 0.902),
    "RCC": (0.735, 0.755, 0.908, 0.921, 0.926),
}


@dataclass(frozen=True)
class PublishedSubtyping:
    """A published zero-shot score on slides.

    Attributes:
        task: `BRCA`, `NSCLC` or `RCC`.
        pooling: K or pooling, where it is stated.
        score: Score in 0..1.
        source: Paper or repository, and the table or section in it.
        metric: Name of the score in the source.
    """

    task: str
    model: str
    pooling: str
    score: float
    source: str
    metric: str = "balanced accuracy"


PUBLISHED = (
    *(
        PublishedSubtyping("RCC", "MI-Zero (BioClinicalBERT), median", pooling, score, _MI_ZERO)
        for pooling, score in (("top1", 0.687), ("top5", 0.704), ("top50", 0.704))
    ),
    *(
        PublishedSubtyping(task, model, "", score, _KEEP)
        for task, scores in _KEEP_SCORES.items()
        for model, score in zip(_KEEP_MODELS, scores, strict=True)
    ),
    PublishedSubtyping("NSCLC", "CONCH", "", 0.907, _CONCH, "accuracy"),
    PublishedSubtyping("RCC", "CONCH", "", 0.902, _CONCH, "accuracy"),
)
"""Published zero-shot subtyping scores, without CPLIP's tables and MI-Zero's tables per task."""
TASKS = {
    frozenset({"IDC", "ILC"}): "BRCA",
    frozenset({"LUAD", "LUSC"}): "NSCLC",
    frozenset({"CHRCC", "CCRCC", "PRCC"}): "RCC",
}
"""Task by its class names in the prompt files of MI-Zero and CONCH."""
_HEADER = ("prompts or model", "pooling", "balanced accuracy", "AUROC", "slides", "source")


def published_subtyping(classes: Sequence[str]) -> list[PublishedSubtyping]:
    """Return the published scores for the task with these classes; empty for other classes."""
    task = TASKS.get(frozenset(classes))
    return [entry for entry in PUBLISHED if entry.task == task]


def subtyping_tables(scores: pd.DataFrame, classes: Sequence[str], model: str) -> list[Table]:
    """Build a table of scores per slide for each split: those of this evaluation, then published scores.

    Scores of several draws are medians, with quartiles in brackets. The list is empty if no score has several draws
    and no scores are published for these classes.

    Args:
        scores: Scores from `slide_prompts.score_prompts`.
        classes: Class names, which identify the published task.
        model: Name of the evaluated model.
    """
    if not published_subtyping(classes) and not (scores["draws"] > 1).any():
        return []
    return [
        Table(
            _HEADER, _rows(group, classes, model), caption=f"{split} slides; several draws: median [quartiles]", left=2
        )
        for split, group in scores[scores["level"] == "slide"].groupby("split", sort=False)
    ]


def _rows(shown: pd.DataFrame, classes: Sequence[str], model: str) -> list[list[object]]:
    rows: list[list[object]] = []
    for (prompts, pooling, smoothed), group in shown.groupby(["prompts", "pooling", "smoothed"], sort=False):
        draws = int(group["draws"].iloc[0])
        by_metric = group.set_index("metric")[["median", "lower", "upper"]].to_dict("index")
        cells = [_cell(by_metric[metric], several=draws > 1) for metric in ("balanced_accuracy", "auroc")]
        name = f"{model}, {prompts}" if draws == 1 else f"{model}, {draws} {prompts}"
        title = PoolingKey(str(pooling), bool(smoothed)).title
        rows.append([name, title, *cells, int(group["labelled"].iloc[0]), "this evaluation"])
    for entry in published_subtyping(classes):
        score = number(entry.score) + ("" if entry.metric == "balanced accuracy" else f" ({entry.metric})")
        rows.append([entry.model, entry.pooling, score, "", "", f"published: {entry.source}"])
    return rows


def _cell(values: Mapping[Any, Any], several: bool) -> str:
    median, lower, upper = (None if pd.isna(values[name]) else values[name] for name in ("median", "lower", "upper"))
    return f"{number(median)} {interval(lower, upper) if several else ''}".rstrip()
