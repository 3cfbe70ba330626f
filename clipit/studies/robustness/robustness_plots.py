"""Plots of the robustness study: score by perturbation level, and reliability before and after calibration."""

from pathlib import Path

import pandas as pd

from clipit.reporting.plots import COLOURS, in_style, legend_beside, line_style, new_figure, save_plot
from clipit.reporting.study_page import iter_groups, iter_rows
from clipit.reporting.tables import LABELS

_MAX_BANDS = 6  # more would overlap; the table has all intervals


@in_style
def plot_curve(
    curves: pd.DataFrame, perturbation: str, path: Path, *, metric: str, neutral: float | None = None
) -> None:
    """Plot one line per model and output, with 95% bands if there are few lines; dotted lines are unperturbed scores.

    Args:
        curves: Rows with analysis = `curve`, for this perturbation and for `none`.
        neutral: Level at which the perturbation has no effect, where curves meet the unperturbed score; None if absent.
    """
    figure = new_figure(8.0, 4.2)
    axes = figure.add_subplot()
    groups = list(iter_groups(curves, ["subject", "output"]))
    for i, (key, group) in enumerate(groups):
        group = group[group.value.notna()]
        clean, points = group[group.level.isna()], group[group.level.notna()]
        if neutral is not None and neutral not in set(points.level):
            points = pd.concat([points, clean.assign(level=neutral)])
        points = points.sort_values("level")
        colour, style = line_style(i)
        size = 6 if len(points) == 1 else 3  # a single point has no line through it
        axes.plot(points.level, points.value, style, color=colour, marker="o", markersize=size, label=": ".join(key))
        bands = points[points.low.notna()][["level", "low", "high"]].astype(float)
        if len(groups) <= _MAX_BANDS and len(points) == 1:
            axes.vlines(bands.level, bands.low, bands.high, color=colour, linewidth=1)
        elif len(groups) <= _MAX_BANDS:
            axes.fill_between(bands.level, bands.low, bands.high, color=colour, alpha=0.12)
        for value in clean.value:
            axes.axhline(value, color=colour, linestyle=":", linewidth=0.9)
    units = [unit for unit in curves.unit if unit]
    axes.set(xlabel=units[0] if units else perturbation, ylabel=LABELS[metric], title=perturbation)
    if perturbation == "jpeg":
        axes.invert_xaxis()  # so that severity increases to the right, as in the other plots
    axes.grid(visible=True)
    legend_beside(axes)
    save_plot(figure, path)


@in_style
def plot_calibration(calibrations: pd.DataFrame, path: Path) -> None:
    """Plot accuracy against mean confidence per bin, before and after temperature scaling, for each model and output.

    Args:
        calibrations: Rows with analysis = `calibration`, with bins from `clipit.evaluation.metrics.reliability_bins`.
    """
    groups = list(iter_groups(calibrations, ["subject", "output"]))
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    figure = new_figure(3.4 * columns + 0.4, 3.5 * lines)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in list(grid.flat)[len(groups) :]:
        axes.axis("off")
    for axes, (key, group) in zip(grid.flat, groups, strict=False):
        axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
        for row in iter_rows(group[group.metric == "ece"]):
            bins = pd.DataFrame(row.reliability)
            bins = bins[bins.n > 0]
            after = row.state == "after"
            axes.plot(
                bins.confidence, bins.accuracy,
                color=COLOURS[int(after)], marker="s" if after else "o", markersize=4, linewidth=1.2,
                label=f"{f'T = {row.level:.2f}' if after else 'before'}, ECE {row.value:.3f}",
            )  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
        axes.set_title(": ".join(key), fontsize=9)
        axes.legend(fontsize=7, loc="upper left")
    save_plot(figure, path)
