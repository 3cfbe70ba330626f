"""Label-efficiency curves as a PNG: a score over the share of the training labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from clipit.reporting.png import save_png
from clipit.reporting.tables import LABELS

# Colours that colour-blind readers can tell apart (Okabe and Ito, 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":", "-.")

LabelSeries = Mapping[str, Sequence[tuple[float, float | None]]]
"""Name -> (share, score) of every seed; None where the score is not defined."""


def label_curves_plot(series: LabelSeries, path: Path, *, metric: str, title: str = "") -> None:
    """One line per name through the means over seeds; with up to 7 names a band from the lowest to the highest seed.

    An arm that reads no label is a level line. Shares at which a score is not defined for every seed have no point; a
    line below the axis says how many.

    Args:
        series: Scores by share (probes of frozen features, or arms); the same function serves both.
        path: The PNG.
        metric: What the score is.
        title: Heading.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.6 if len(series) <= len(_COLOURS) else 6.0), layout="constrained")
    axes = figure.add_subplot()
    left_out = 0
    for i, (name, points) in enumerate(series.items()):
        found = curve_points(points)
        left_out += len({share for share, _ in points}) - len(found)
        colour, style = _COLOURS[i % len(_COLOURS)], _STYLES[i // len(_COLOURS) % len(_STYLES)]
        if any(share == 0 for share, *_ in found):  # reads no label at any share, and 0 has no place on the axis
            level = mean(m for share, m, _, _ in found if share == 0)
            axes.axhline(level, color=colour, linestyle=style, linewidth=1, label=f"{name} (no label)")
            found = [point for point in found if point[0] > 0]
            if not found:
                continue
        shares = [100 * share for share, *_ in found]
        axes.plot(
            shares, [m for _, m, _, _ in found], color=colour, linestyle=style, marker="o", markersize=3, label=name
        )
        if len(series) <= len(_COLOURS):  # the bands of more would hide the lines
            lowest, highest = [low for *_, low, _ in found], [high for *_, high in found]
            axes.fill_between(shares, lowest, highest, color=colour, alpha=0.1)
    axes.set_xscale("log")
    ticks = sorted({100 * share for points in series.values() for share, _ in points if share > 0})
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    note = f"\n{left_out} points are not defined (a class without a label)" if left_out else ""
    axes.set(xlabel=f"share of the training labels, %{note}", ylabel=LABELS.get(metric, metric), title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    save_png(figure, path)


def curve_points(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float, float, float]]:
    """Share, mean, lowest and highest score over seeds, by share; without shares at which a seed has no score."""
    by_share: dict[float, list[float | None]] = {}
    for share, score in points:
        by_share.setdefault(share, []).append(score)
    found = []
    for share in sorted(by_share):
        scores = [score for score in by_share[share] if score is not None]
        if len(scores) == len(by_share[share]):
            found.append((share, mean(scores), min(scores), max(scores)))
    return found
