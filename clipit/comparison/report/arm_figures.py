"""Figures of each arm over all seeds: confusion matrix, reliability and training curves."""

from collections.abc import Sequence
from math import isfinite
from statistics import mean

import numpy as np

from clipit.comparison.report.comparison_tables import predictions_source, setting_label
from clipit.comparison.statistics import ArmResult
from clipit.errors import counted
from clipit.evaluation.metrics import confusion_matrix, reliability_bins
from clipit.evaluation.predictions import read_predictions
from clipit.reporting.html import Figure, Folded, PageSection, Part, Table, Text
from clipit.reporting.plots import COLOURS, inline_svg, plot_lines, plot_reliability
from clipit.reporting.training_curves import Series, read_curves

_MAX_CLASSES = 20  # larger matrices appear only on the pages of the runs
_UNFOLDED = 2  # number of curve plots that are not collapsed


def confusion_sections(results: Sequence[ArmResult]) -> list[PageSection]:
    """Draw confusion matrices and reliability diagrams on the test split, one section per data set and backbone."""
    sections = []
    settings = list(dict.fromkeys(result.key.setting for result in results))
    for setting in settings:
        parts: list[Part] = [
            Text("Test split, pooled over seeds (each tile counts once per seed). Rows: true classes."),
        ]
        for result in results:
            if result.key.setting == setting and result.key.test_set == "test" and not result.reference:
                parts.append(Folded(result.key.arm, _pooled_parts(result)))
        sections.append(PageSection(f"Errors and calibration{setting_label(setting, settings)}", parts))
    return sections


def _pooled_parts(result: ArmResult) -> list[Part]:
    tables = [read_predictions(row.predictions_file(), row.predictions_sha256).select("test") for row in result.rows]
    classes = tables[0].classes
    labels = np.concatenate([table.labels for table in tables])
    probabilities = np.concatenate([table.probabilities for table in tables])[labels >= 0]
    labels = labels[labels >= 0]
    source = predictions_source(result)
    arm, parts = result.key.arm, list[Part]()
    if len(classes) <= _MAX_CLASSES:
        counts = confusion_matrix(labels, probabilities.argmax(axis=1), len(classes))
        shades = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        rows = [[name, *row] for name, row in zip(classes, counts.tolist(), strict=True)]
        caption = f"{arm}: number of tiles; shade: fraction of the true class (row)"
        header = ("true \\ predicted", *classes)
        parts.append(Table(header, rows, caption=caption, source=source, shades=shades.tolist()))
    svg = inline_svg(plot_reliability(reliability_bins(labels, probabilities)), f"Reliability diagram of {arm}")
    parts.append(Figure(svg, f"{arm}: accuracy against confidence", source=source))
    return parts


def curve_sections(results: Sequence[ArmResult], baseline: str) -> list[PageSection]:
    """Draw training curves, one section per data set and backbone; arms without a training log are listed.

    Args:
        baseline: Name of the arm drawn in every plot.
    """
    tested = [result for result in results if result.key.test_set == "test" and not result.reference]
    settings = list(dict.fromkeys(result.key.setting for result in tested))
    sections = []
    for setting in settings:
        arm_curves = {
            result.key.arm: mean_curves(_read_logs(result)) for result in tested if result.key.setting == setting
        }
        missing = [arm for arm, curves in arm_curves.items() if not curves]
        parts: list[Part] = [
            Text(
                "Means over seeds, at the steps logged by every seed. Losses are not comparable between arms with "
                "different loss terms: a lower curve does not mean a better student. The checkpoint with the best "
                "validation score is kept."
            )
        ]
        figures = _curve_figures(arm_curves, baseline)
        parts += figures[:_UNFOLDED]
        if figures[_UNFOLDED:]:
            folded = len(figures) - _UNFOLDED
            parts.append(Folded(counted(folded, "more plot"), figures[_UNFOLDED:]))
        if missing:
            parts.append(Text(f"No training log (metrics.jsonl): {', '.join(missing)}."))
        if figures:
            sections.append(PageSection(f"Training curves{setting_label(setting, settings)}", parts))
    return sections


def _read_logs(result: ArmResult) -> list[Series]:
    logs = [row.run_folder() / "metrics.jsonl" for row in result.rows]
    return [read_curves(log) for log in logs if log.is_file()]


def mean_curves(curves: Sequence[Series]) -> dict[str, tuple[list[int], list[float]]]:
    """Average curves over several runs, at the steps where all of them logged a finite value.

    Args:
        curves: Steps and values by name of the curve, one mapping per run.
    """
    names = [name for name in (curves[0] if curves else {}) if all(name in one for one in curves)]
    means = {}
    for name in names:
        each = [dict(zip(*one[name], strict=True)) for one in curves]
        steps = [step for step in each[0] if all(isfinite(one.get(step, float("nan"))) for one in each)]
        if steps:
            means[name] = (steps, [mean(one[step] for one in each) for step in steps])
    return means


def _curve_figures(arm_curves: dict[str, dict[str, tuple[list[int], list[float]]]], baseline: str) -> list[Figure]:
    """Plot loss and validation scores; each plot includes the baseline and at most one arm per colour."""
    others, size = [arm for arm in arm_curves if arm != baseline], len(COLOURS) - 1
    groups = [others[i : i + size] for i in range(0, len(others), size)] or [[]]
    scores = dict.fromkeys(name for curves in arm_curves.values() for name in curves if name.startswith("validation"))
    figures = []
    for group in groups:
        colours = {arm: i for i, arm in enumerate((baseline, *group))}
        for name in ("loss", *scores):
            series = {arm: arm_curves[arm][name] for arm in colours if name in arm_curves.get(arm, {})}
            if not series or (list(series) == [baseline] and group):
                continue
            label = name.replace("_", " ")
            plot = plot_lines(series, y_label=label, logarithmic=name == "loss", colours=colours)
            svg = inline_svg(plot, f"{label} over steps: {', '.join(series)}")
            source = f"metrics.jsonl of the runs of these arms: {name}"
            figures.append(Figure(svg, f"{label} over steps, mean over seeds", source=source))
    return figures
