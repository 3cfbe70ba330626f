"""Plots of a prompt study: spread of scores over wordings, and the sensitivity grid as heat maps."""

from pathlib import Path

import numpy as np
import pandas as pd

from clipit.evaluation.prompt_modes import summarise_scores
from clipit.prompts.prompt_grid import fill_template
from clipit.reporting.plots import COLOURS, in_style, new_figure, save_plot
from clipit.reporting.study_page import iter_groups
from clipit.reporting.tables import LABELS

_BOXES = {"draw": (COLOURS[5], -0.18, "random draws"), "cell": (COLOURS[4], 0.18, "grid of wordings")}
_MARKERS = {"single": ("o", COLOURS[0]), "ensemble": ("D", COLOURS[1]), "screened": ("^", COLOURS[2])}


@in_style
def plot_spread(frame: pd.DataFrame, metric: str, path: Path) -> None:
    """Plot, for each model and prompt set, box plots of random draws and grid cells, and markers for the modes.

    A box spans the quartiles and shows the median; its whiskers extend to the extremes.

    Args:
        frame: Table read from prompts.parquet; undefined scores are dropped.
    """
    groups = list(iter_groups(frame, ["subject", "prompts"]))
    figure = new_figure(8.5, 1.6 + 0.95 * len(groups))
    axes = figure.add_subplot()
    for row, (_, group) in enumerate(groups):
        group = group[group[metric].notna()]
        for kind, (colour, offset, _) in _BOXES.items():
            summary = summarise_scores(group[metric][group.kind == kind].tolist())
            if summary:
                y, width = row + offset, summary.upper - summary.lower
                axes.plot([summary.lowest, summary.highest], [y, y], color="black", linewidth=1, marker="|")
                axes.barh(y, width, 0.28, summary.lower, color=colour, edgecolor="black", zorder=2)
                axes.plot([summary.median] * 2, [y - 0.14, y + 0.14], color="black", linewidth=2, zorder=3)
        modes = group[group.kind == "mode"]
        for mode, score in zip(modes["mode"], modes[metric], strict=True):
            marker, colour = _MARKERS[mode]
            axes.plot([score], [row], marker=marker, color=colour, markeredgecolor="white", markersize=9)
    for mode, (marker, colour) in _MARKERS.items():
        axes.plot([], [], marker=marker, color=colour, linestyle="", label=mode)
    for colour, _, label in _BOXES.values():
        axes.plot([], [], color=colour, linewidth=8, label=label)
    axes.set_yticks(range(len(groups)), [f"{subject}\n{prompts}" for (subject, prompts), _ in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set(xlabel=f"{LABELS[metric]} on test tiles (not used for selection)")
    axes.grid(axis="x")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    save_plot(figure, path)


@in_style
def plot_grid(cells: pd.DataFrame, metric: str, path: Path) -> None:
    """Plot one heat map per model and prompt set (templates x words), with a shared colour scale.

    Args:
        cells: Rows of the kind `cell`; undefined scores stay white.
    """
    words = list(zip(cells.organ, cells.magnification, cells.stain, strict=True))
    distinct = list(dict.fromkeys(words))
    labels = [", ".join(filter(None, group)) or "(no words)" for group in distinct]
    cells = cells.assign(words=[distinct.index(group) for group in words], score=cells[metric].astype(float))
    low, high = (0.0, 0.0) if cells.score.isna().all() else (cells.score.min(), cells.score.max())
    templates = list(dict.fromkeys(cells.template))
    groups = list(iter_groups(cells, ["subject", "prompts"]))
    rows = [fill_template(template) for template in templates]
    width = 1.8 + 0.62 * len(labels) + 0.06 * max(map(len, rows))  # a letter of the tick labels takes 0.06 inches
    height = 0.9 + 0.05 * max(map(len, labels)) + len(groups) * (0.5 + 0.42 * len(templates))
    figure = new_figure(width, height)
    panels = figure.subplots(len(groups), 1, squeeze=False, sharex=True)[:, 0]
    image = None
    for axes, ((subject, prompts), part) in zip(panels, groups, strict=True):
        grid = part.pivot(index="template", columns="words", values="score").loc[templates].to_numpy()
        image = axes.imshow(grid, cmap="viridis", vmin=low, vmax=high, aspect="auto")
        for row, column in np.argwhere(np.isfinite(grid)):
            score = grid[row, column]
            colour = "black" if (score - low) / max(high - low, 1e-9) > 0.5 else "white"
            axes.text(column, row, f"{score:.2f}", ha="center", va="center", fontsize=7, color=colour)
        axes.set_title(f"{subject}, {prompts}", fontsize=9, loc="left")
        axes.set_yticks(range(len(rows)), rows, fontsize=7)
    panels[-1].set_xticks(range(len(labels)), labels, rotation=40, ha="right", fontsize=7)
    if image is not None:
        figure.colorbar(image, ax=list(panels), label=LABELS[metric], shrink=0.8)
    save_plot(figure, path)
