"""Sections of the probing page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from clipit.config.studies import ProbingConfig
from clipit.errors import counted
from clipit.reporting.html import Figure, PageSection, Table, Text, facts_table
from clipit.reporting.study_page import (
    describe_model,
    iter_groups,
    iter_rows,
    pivot_cells,
    undefined_section,
)
from clipit.reporting.tables import LABELS, mean_sd, number, with_interval

FILE = "probing.parquet"
_RETRIEVAL = ("precision", "vote", "recall")
_METRICS_PER_TABLE = 3  # more columns with intervals would not fit on a page
_SAW_LABELS = (
    "Saw labels: whether the features come from a clipit run that was trained on labels of these tiles. If true, more "
    "labels were used than the column heading states, and the row does not measure label efficiency. The value is "
    "false for published models, although their training data may be unknown."
)


def probing_sections(
    probing: ProbingConfig, seed: int, frame: pd.DataFrame, provenance: Mapping[str, Any], plot: str | None
) -> list[PageSection]:
    """Build the sections on probes, few-shot episodes, label efficiency, retrieval, and provenance.

    Args:
        seed: Seed of the run whose labels the probes use.
        plot: File name of the label-efficiency plot.
    """
    curves, few_shot = frame[frame.share.notna()], frame[frame.task == "few_shot"]
    scored = frame[frame.metric.isin(list(LABELS)) & (frame.task != "few_shot") & frame.share.isna()]
    sections = [
        PageSection(
            "Probes",
            [
                Text(
                    "All scores are on the test split. Hyperparameters and steps are selected on validation tiles; "
                    "nothing is selected on test tiles. In brackets: 95% percentile bootstrap intervals over test "
                    "tiles, clustered by group where known."
                ),
                Text(
                    f"Probes use the labels that a run with seed {seed} may use (tiles.labels). k-NN: cosine, k = "
                    f"{probing.neighbours}, unweighted votes, ties go to the first class; with fewer than k labels, "
                    "all of them vote, so the result is uninformative. SimpleShot: features centred on the training "
                    "mean, L2-normalised, nearest class mean."
                ),
                *_probe_tables(scored),
            ],
        ),
        PageSection(
            f"Few-shot classification ({LABELS[probing.metric]})",
            [
                Text(
                    f"SimpleShot, {counted(probing.episodes, 'episode')}, tiles drawn from all labelled training "
                    "tiles. The interval of the mean does not account for the sampling error of the test tiles, which "
                    "are the same in all episodes."
                ),
                Text(_SAW_LABELS),
                *_few_shot_tables(few_shot),
            ],
        ),
    ]
    if len(curves):
        source = f"{FILE}: columns share and value, task = curve ..."
        sections.append(
            PageSection(
                f"Label efficiency ({LABELS[probing.metric]})",
                [
                    Text(
                        "Fractions of all training labels, drawn per class, once for each seed "
                        f"({', '.join(map(str, probing.seeds))}). Larger shares contain the smaller ones. There are at "
                        "most as many validation labels as training labels. Mean ± standard deviation over seeds; n/a: "
                        "a class would have no label."
                    ),
                    _curve_table(curves),
                    *([Figure(Path(plot), "Label efficiency; bands: range over seeds", source=source)] if plot else []),
                ],
            )
        )
    own_group = "Tiles of the query's own group (where known) are excluded. " if probing.exclude_groups else ""
    sections += [
        PageSection(
            "Retrieval",
            [
                Text(
                    "precision@k: fraction of the k nearest items with the query's class; vote@k: fraction of queries "
                    "whose class has the most votes among the k nearest; recall@k: fraction of the query's true "
                    f"matches among the k nearest. In brackets: ratio to the score of random retrieval. {own_group}"
                    "Image to image, test: leave-one-out within the test split; where groups are unknown, tiles of the "
                    "query's own slide may be retrieved, so these scores can be too high."
                ),
                *(
                    _retrieval_table(frame[frame.metric == name], name)
                    for name in _RETRIEVAL
                    if name in set(frame.metric)
                ),
            ],
        ),
        PageSection("Provenance", [facts_table(_facts(provenance), "probing.json")]),
    ]
    reasons = [(f"{row.subject}, {row.task}", row.reason) for row in iter_rows(frame) if row.reason]
    return sections + undefined_section(reasons, f"{FILE}: column reason")


def _probe_tables(scored: pd.DataFrame) -> list[Table]:
    metrics = list(dict.fromkeys(scored.metric))
    labels = ["" if row.labels is None else f"{row.labels} + {row.validation_labels}" for row in iter_rows(scored)]
    scored = scored.assign(classifier=scored.task.str.replace("_", "-"), label_counts=labels)
    tables = []
    for start in range(0, len(metrics), _METRICS_PER_TABLE):
        shown = scored[scored.metric.isin(metrics[start : start + _METRICS_PER_TABLE])]
        names, lines = pivot_cells(shown, ["subject", "classifier", "label_counts"], "metric", _format_interval)
        header = ["features", "classifier", "labels + validation", *(LABELS[name] for name in names)]
        source = f"{FILE}: columns value, low, high by subject, task, metric"
        tables.append(Table(header, lines, source=source, left=2))
    return tables


def _few_shot_tables(few_shot: pd.DataFrame) -> list[Table]:
    source = f"{FILE}: columns value, low, high, spread, features_saw_labels, task = few_shot"
    tables = []
    for caption, format_cell in (
        ("Mean over episodes, with its 95% t-interval in brackets", _format_interval),
        ("Central 95% of the episodes: the range to expect from one draw of labels", _format_spread),
    ):
        shots, lines = pivot_cells(few_shot, ["subject", "features_saw_labels"], "k", format_cell)
        header = ["features", "saw labels", *(f"{k} per class" for k in shots)]
        tables.append(Table(header, lines, caption=caption, source=source, left=2))
    return tables


def _curve_table(curves: pd.DataFrame) -> Table:
    shares = sorted(set(curves.share))
    lines = []
    for (subject, task, saw), group in iter_groups(curves, ["subject", "task", "features_saw_labels"]):
        cells = [mean_sd(group.value[group.share == share].tolist()) for share in shares]
        lines.append([subject, task.removeprefix("curve ").replace("_", "-"), saw, *cells])
    header = ["features", "classifier", "saw labels", *(f"{100 * share:g}%" for share in shares)]
    return Table(header, lines, source=f"{FILE}: columns value, features_saw_labels, task = curve ...", left=3)


def _retrieval_table(rows: pd.DataFrame, name: str) -> Table:
    ks, lines = pivot_cells(rows, ["subject", "task", "n", "gallery"], "k", _format_fold)
    header = ["features", "task", "queries", "gallery", *(f"{name}@{k}" for k in ks)]
    return Table(header, lines, source=f"{FILE}: columns value, fold, k, metric = {name}", left=2)


def _format_interval(row: Any) -> str:
    return with_interval(row.value, row.low, row.high)


def _format_spread(row: Any) -> str:
    return number(None) if row.value is None else f"{number(row.spread[0])} to {number(row.spread[1])}"


def _format_fold(row: Any) -> str:
    return number(row.value) + (f" ({row.fold:.1f}x)" if row.fold is not None else "")


def _facts(provenance: Mapping[str, Any]) -> dict[str, object]:
    facts: dict[str, object] = {name: describe_model(model) for name, model in provenance["subjects"].items()}
    prompts = provenance["prompts"]
    return facts | {
        "prompts": f"{prompts['name']} ({prompts['hash']})" if prompts else "none",
        "classes": ", ".join(provenance["classes"]),
        "tiles": provenance["tiles"],
        "run": provenance["run"] or "none",
        "command": provenance["command"],
        "commit": provenance["commit"],
    }
