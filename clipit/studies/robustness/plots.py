"""Plots of robustness as PNG: a score over the level of a perturbation, and reliability before and after."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipit.reporting.png import save_png
from clipit.reporting.tables import LABELS

# Colours that colour-blind readers can tell apart (Okabe and Ito, 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":", "-.")
_MOST_BANDS = 6  # more of them hide each other; the intervals stand in the table
Row = Mapping[str, Any]


def curve_plot(
    rows: Sequence[Row], perturbation: str, path: Path, *, metric: str, neutral: float | None = None
) -> None:
    """One line per subject and reading, with a band of the 95 % interval if they are few; dotted: tiles as they are.

    Args:
        rows: Of what `curve`: this perturbation's and those of `none`.
        perturbation: Its name.
        path: The PNG.
        metric: What the score is.
        neutral: The level that changes nothing, where the curves meet the score of the tiles as they are.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.2), layout="constrained")
    axes = figure.add_subplot()
    keys = list(dict.fromkeys((row["subject"], row["reading"]) for row in rows))
    unit = next((row["unit"] for row in rows if row["unit"]), perturbation)
    for i, key in enumerate(keys):
        of_key = [row for row in rows if (row["subject"], row["reading"]) == key and row["value"] is not None]
        clean = [{**row, "level": neutral} for row in of_key if row["level"] is None and neutral is not None]
        levelled = [row for row in of_key if row["level"] is not None]
        asked = {row["level"] for row in levelled}
        points = sorted([*levelled, *(row for row in clean if neutral not in asked)], key=lambda row: row["level"])
        levels = [row["level"] for row in points]
        colour, style = _COLOURS[i % len(_COLOURS)], _STYLES[i // len(_COLOURS) % len(_STYLES)]
        axes.plot(
            levels,
            [row["value"] for row in points],
            style,
            color=colour,
            marker="o",
            markersize=3,
            label=": ".join(key),
        )
        banded = [row for row in points if row["low"] is not None and len(keys) <= _MOST_BANDS]
        axes.fill_between(
            [row["level"] for row in banded], [row["low"] for row in banded], [row["high"] for row in banded],
            color=colour, alpha=0.12,
        )  # fmt: skip
        for row in of_key:
            if row["level"] is None:
                axes.axhline(row["value"], color=colour, linestyle=":", linewidth=0.9)
    axes.set(xlabel=unit, ylabel=LABELS[metric], title=perturbation)
    if perturbation == "jpeg":
        axes.invert_xaxis()  # worse to the right, as in the other plots
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    save_png(figure, path)


def calibration_plot(rows: Sequence[Row], path: Path) -> None:
    """Per subject and reading: accuracy over mean confidence of each bin, before and after temperature scaling.

    Args:
        rows: Of what `calibration`, with `reliability` (bins of `clipit.evaluation.metrics.reliability_bins`).
        path: The PNG.
    """
    from matplotlib.figure import Figure

    keys = list(dict.fromkeys((row["subject"], row["reading"]) for row in rows))
    columns = min(3, len(keys))
    lines = -(-len(keys) // columns)
    figure = Figure(figsize=(3.4 * columns + 0.4, 3.5 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in list(grid.flat)[len(keys) :]:
        axes.axis("off")
    for axes, key in zip(grid.flat, keys, strict=False):
        axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
        for row in rows:
            if (row["subject"], row["reading"], row["metric"]) != (*key, "ece"):
                continue
            filled = [found for found in row["reliability"] if found["n"]]
            after = row["state"] == "after"
            label = f"T = {row['level']:.2f}" if after else "before"
            axes.plot(
                [found["confidence"] for found in filled], [found["accuracy"] for found in filled],
                color=_COLOURS[int(after)], marker="s" if after else "o", markersize=4, linewidth=1.2,
                label=f"{label}, ECE {row['value']:.3f}",
            )  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
        axes.set_title(": ".join(key), fontsize=9)
        axes.legend(fontsize=7, loc="upper left")
    save_png(figure, path)
