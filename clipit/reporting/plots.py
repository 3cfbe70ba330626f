"""Plots as PNG files, through matplotlib's object interface (no global state, no display)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipit.reporting.curves import Series
from clipit.reporting.png import save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that colour-blind readers can tell apart (Okabe and Ito, 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MANY_CLASSES = 5
_LOSSES = ("loss", "cross_entropy", "distillation")


def confusion_plot(confusion: Sequence[Sequence[int]], classes: Sequence[str], path: Path, *, title: str = "") -> None:
    """Confusion matrix: cells hold numbers of tiles, shades the share of the true class (row)."""
    counts = np.asarray(confusion, dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.6 + 0.62 * len(classes)
    figure = _figure(side + 0.8, side)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    slanted = max(map(len, classes)) > (4 if len(classes) > _MANY_CLASSES else 9)
    axes.set_xticks(range(len(classes)), classes, rotation=45 if slanted else 0, ha="right" if slanted else "center")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 0.55 else "black"
        axes.text(column, row, f"{int(counts[row, column])}", ha="center", va="center", color=colour, fontsize=9)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    save_png(figure, path)


def curves_plot(series: Series, path: Path, *, title: str = "") -> None:
    """Training curves: one panel for losses, one for validation scores, one for the learning rate.

    Args:
        series: Of `read_curves`. The loss and its terms (names that contain `loss`, `cross_entropy` or
            `distillation`), other names that begin with `validation`, and names that contain `learning_rate` are
            drawn; the rest (speed, memory) is not.
        path: The PNG.
        title: Heading.
    """
    losses = {name: points for name, points in series.items() if any(term in name for term in _LOSSES)}
    scores = {n: points for n, points in series.items() if n.startswith("validation") and n not in losses}
    rates = {name: points for name, points in series.items() if "learning_rate" in name}
    panels = [(label, part) for label, part in (("loss", losses), ("validation", scores), ("rate", rates)) if part]
    figure = _figure(8.0, 0.8 + 2.6 * max(1, len(panels)))
    rows = figure.subplots(max(1, len(panels)), 1, sharex=True, squeeze=False)[:, 0]
    for i, (label, part) in enumerate(panels):
        axes = rows[i]
        _lines(axes, part)
        axes.set_ylabel("learning rate" if label == "rate" else label)
        if label == "loss" and all(min(values) > 0 for _, values in part.values()):
            axes.set_yscale("log")
        if i == len(panels) - 1:
            axes.set_xlabel("step")
    if not panels:
        rows[0].text(0.5, 0.5, "nothing logged", ha="center")
    figure.suptitle(title)
    save_png(figure, path)


def reliability_plot(bins: Sequence[Mapping[str, Any]], path: Path, *, title: str = "") -> None:
    """Reliability diagram: accuracy over confidence per bin, and how many tiles each bin holds.

    Args:
        bins: Of `clipit.evaluation.metrics.reliability_bins`.
        path: The PNG.
        title: Heading.
    """
    figure = _figure(5.2, 5.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = bins[0]["high"] - bins[0]["low"]
    middles = [(b["low"] + b["high"]) / 2 for b in bins]
    filled = [b for b in bins if b["n"]]
    upper.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label="perfectly calibrated")
    upper.bar(
        [(b["low"] + b["high"]) / 2 for b in filled], [b["accuracy"] for b in filled],
        width=width * 0.92, color=_COLOURS[5], label="accuracy of the bin",
    )  # fmt: skip
    upper.plot(
        [b["confidence"] for b in filled], [b["accuracy"] for b in filled],
        marker="o", linestyle="", markersize=4, color=_COLOURS[1], label="at its mean confidence",
    )  # fmt: skip
    upper.set(ylabel="accuracy", ylim=(0, 1), xlim=(0, 1), title=title)
    upper.legend(loc="upper left", fontsize=8)
    lower.bar(middles, [b["n"] for b in bins], width=width * 0.92, color="0.6")
    lower.set(xlabel="confidence (probability of the predicted class)", ylabel="tiles")
    save_png(figure, path)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _lines(axes: "Axes", series: Series) -> None:
    for i, (name, (steps, values)) in enumerate(series.items()):
        marker = "o" if len(steps) <= 40 else ""
        style = "-" if i < len(_COLOURS) else "--"
        colour = _COLOURS[i % len(_COLOURS)]
        label = name.replace("_", " ")
        axes.plot(steps, values, color=colour, linestyle=style, marker=marker, markersize=3, linewidth=1.2, label=label)
    axes.grid(alpha=0.3)
    if len(series) > 1 or "learning_rate" not in next(iter(series)):
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
