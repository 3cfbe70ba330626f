"""Plots of scores over seeds, labels and hyperparameters, and of points in a plane."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from clipit.errors import counted
from clipit.reporting.plots import COLOURS, in_style, legend_beside, line_style, new_figure, tooltip
from clipit.reporting.tables import LABELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOG_SPAN = 8.0  # ratio of the largest to the smallest value at and above which the axis of a swept key is logarithmic

SweepPoints = Sequence[tuple[object, float | None, float | None]]
"""Value of the key, validation score and test score of each trial; None where a score is undefined."""
LabelSeries = Mapping[str, Sequence[tuple[float, float | None]]]
"""Fraction of the labels and score of every seed, by name; None where a score is undefined."""


@in_style
def plot_seed_scores(
    scores: Mapping[str, Mapping[str, float | None]], *, x_label: str, baseline: str | None = None
) -> "Figure":
    """Plot scores by seed, one row per arm: a dot per seed, and a vertical line at the mean of several seeds.

    The number of undefined scores is shown next to the row.

    Args:
        scores: Score by arm and seed; None where undefined.
        x_label: Title of the horizontal axis.
        baseline: Arm whose mean is drawn as a dashed line through all rows.
    """
    figure = new_figure(6.6 + 0.09 * max(map(len, scores), default=0), 0.9 + 0.3 * max(1, len(scores)))
    axes = figure.add_subplot()
    for row, (arm, by_seed) in enumerate(scores.items()):
        defined = {seed: value for seed, value in by_seed.items() if value is not None and np.isfinite(value)}
        for seed, value in defined.items():
            text = tooltip(f"{arm}, {seed}: {value:.6g}")
            axes.plot(value, row, "o", color=COLOURS[0], alpha=0.7, markeredgewidth=0, gid=text)
        if defined:
            average = mean(defined.values())
            if len(defined) > 1:  # a line through a single dot would hide it
                axes.plot([average, average], [row - 0.35, row + 0.35], color="black", linewidth=2, label="mean")
            if arm == baseline:
                axes.axvline(average, color="0.5", linestyle="--", linewidth=1)
        if len(defined) < len(by_seed):
            missing = f"{len(by_seed) - len(defined)} n/a"
            axes.text(1.01, row, missing, va="center", fontsize=8, transform=axes.get_yaxis_transform())
    axes.set_yticks(range(len(scores)), list(scores))
    axes.set_ylim(max(1, len(scores)) - 0.5, -0.5)
    axes.set_xlabel(x_label)
    axes.grid(axis="x")
    return figure


@in_style
def plot_label_efficiency(series: LabelSeries, *, metric: str, title: str = "") -> "Figure":
    """Plot a score against the fraction of training labels: one line per name through the means over seeds.

    With up to 7 names, a band (a bar at a single fraction) spans the scores of all seeds. An arm that uses no labels is
    a horizontal line. Fractions at which the score of any seed is undefined have no point; the axis title says how
    many.

    Args:
        series: Scores by fraction of labels, of probes on frozen features or of arms.
    """
    few = len(series) <= len(COLOURS)  # more bands would hide the lines
    figure = new_figure(8.4, 4.6 if few else 6.0)
    axes = figure.add_subplot()
    undefined = 0
    for i, (name, points) in enumerate(series.items()):
        summary = summarise_shares(points)
        undefined += len({share for share, _ in points}) - len(summary)
        colour, style = line_style(i)
        if any(share == 0 for share, *_ in summary):  # the arm uses no labels, and a logarithmic axis has no 0
            level = mean(average for share, average, _, _ in summary if share == 0)
            axes.axhline(level, color=colour, linestyle=style, linewidth=1, label=f"{name} (no labels)")
            summary = [point for point in summary if point[0] > 0]
            if not summary:
                continue
        shares = [100 * share for share, *_ in summary]
        averages = [average for _, average, _, _ in summary]
        size = 6 if len(shares) == 1 else 3  # a single point has no line through it
        axes.plot(shares, averages, style, color=colour, marker="o", markersize=size, label=name, gid=tooltip(name))
        if few and len(shares) == 1:
            error = [[averages[0] - summary[0][2]], [summary[0][3] - averages[0]]]
            axes.errorbar(shares, averages, error, color=colour, linewidth=1, capsize=3)
        elif few:
            lowest, highest = [low for *_, low, _ in summary], [high for *_, high in summary]
            axes.fill_between(shares, lowest, highest, color=colour, alpha=0.1)
    axes.set_xscale("log")
    ticks = sorted({100 * share for points in series.values() for share, _ in points if share > 0})
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    note = f"\n{counted(undefined, 'point is', 'points are')} undefined (a class without labels)" if undefined else ""
    axes.set(xlabel=f"fraction of the training labels, %{note}", ylabel=LABELS.get(metric, metric), title=title)
    axes.grid(visible=True)
    legend_beside(axes)
    return figure


def summarise_shares(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float, float, float]]:
    """Return each fraction with the mean, lowest and highest score over seeds, unless a score is undefined."""
    by_share: dict[float, list[float | None]] = {}
    for share, score in points:
        by_share.setdefault(share, []).append(score)
    summary = []
    for share in sorted(by_share):
        scores = [score for score in by_share[share] if score is not None]
        if len(scores) == len(by_share[share]):
            summary.append((share, mean(scores), min(scores), max(scores)))
    return summary


@in_style
def plot_planes(planes: Mapping[str, Mapping[str, Float[np.ndarray, "_ 2"]]], *, title: str = "") -> "Figure":
    """Plot points in a plane, such as two principal components: one panel per plane, one colour per kind.

    Args:
        planes: Coordinates by panel title and name of the points.
    """
    figure = new_figure(4.2 * max(1, len(planes)), 4.4)
    panels = figure.subplots(1, max(1, len(planes)), squeeze=False)[0]
    for axes, (name, kinds) in zip(panels, planes.items(), strict=True):
        for i, (kind, points) in enumerate(kinds.items()):
            axes.scatter(points[:, 0], points[:, 1], s=6, alpha=0.5, color=line_style(i)[0], label=kind)
        axes.set(title=name, xticks=[], yticks=[])
        axes.legend(loc="best")
    figure.suptitle(title)
    return figure


@in_style
def plot_sweep(panels: Mapping[str, SweepPoints], *, metric: str, test_metric: str, title: str = "") -> "Figure":
    """Plot scores against swept values: one panel per key, a dot per trial, a line through the mean of each value.

    Args:
        panels: Trials by swept key; they may also differ in other keys.
        metric: Validation score used for selection.
        test_metric: Test score, drawn hollow because it is not used for selection; "" if there is none.
    """
    figure = new_figure(1.6 + 4.4 * len(panels), 4.2)
    for axes, (key, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        position = _place_values(axes, [value for value, _, _ in points])
        validation = [(position[str(value)], score) for value, score, _ in points if score is not None]
        test = [(position[str(value)], score) for value, _, score in points if score is not None]
        _draw_trials(axes, validation, COLOURS[0], "-", f"validation {LABELS.get(metric, metric)}", filled=True)
        if test_metric:
            name = LABELS.get(test_metric, test_metric)
            _draw_trials(axes, test, COLOURS[1], ":", f"test {name} (not used for selection)", filled=False)
        if not validation and not test:
            axes.text(0.5, 0.5, "all scores are undefined", ha="center", transform=axes.transAxes)
        axes.set(xlabel=key, ylabel="score")
        axes.grid(visible=True)
        axes.legend()
    figure.suptitle(title)
    return figure


def mean_per_value(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Compute the mean score at each position, from left to right."""
    scores: dict[float, list[float]] = {}
    for x, score in points:
        scores.setdefault(x, []).append(score)
    return [(x, mean(scores[x])) for x in sorted(scores)]


def _place_values(axes: "Axes", values: Sequence[object]) -> dict[str, float]:
    """Map values to axis positions: numbers to scale (logarithmic over a wide range), words equally spaced."""
    distinct = {str(value): value for value in values}
    numbers = {
        text: float(value)
        for text, value in distinct.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    if len(numbers) < len(distinct):
        axes.set_xticks(range(len(distinct)), list(distinct))
        return {text: float(i) for i, text in enumerate(distinct)}
    low, high = min(numbers.values()), max(numbers.values())
    if low > 0 and high / low >= _LOG_SPAN:
        axes.set_xscale("log")
        axes.set_xticks([], minor=True)
    axes.set_xticks(list(numbers.values()), list(numbers))
    return numbers


def _draw_trials(
    axes: "Axes", points: Sequence[tuple[float, float]], colour: str, style: str, label: str, *, filled: bool
) -> None:
    face = colour if filled else "none"
    axes.scatter([x for x, _ in points], [y for _, y in points], s=22, facecolors=face, edgecolors=colour, alpha=0.7)
    averages = mean_per_value(points)
    marker = "" if len(averages) > 1 else "o"  # a line through a single value has no length
    axes.plot(
        [x for x, _ in averages], [y for _, y in averages], style, color=colour, linewidth=1.4, marker=marker,
        markerfacecolor=face, label=label,
    )  # fmt: skip
