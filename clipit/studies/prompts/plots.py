"""Pictures of a prompt study: the spread of scores over ways of asking, and the sensitivity grid as heat maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipit.evaluation.prompt_modes import summarise
from clipit.prompts.grid import worded
from clipit.reporting.png import save_png
from clipit.reporting.tables import LABELS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart by colour-blind readers.
_DRAWS, _CELLS = "#56B4E9", "#E69F00"
_MARKS = {"single": ("o", "#0072B2"), "ensemble": ("D", "#D55E00"), "screened": ("^", "#009E73")}


def spread_plot(rows: Sequence[Mapping[str, Any]], metric: str, path: Path) -> None:
    """Per subject and prompt set: boxes over the sampled draws and over the grid, marks for the other modes.

    A box holds the middle half with the median, its whiskers reach to the extremes.

    Args:
        rows: Of prompts.parquet; scores that are None are left out.
        metric: Which score.
        path: The PNG.
    """
    asked = list(dict.fromkeys((row["subject"], row["prompts"]) for row in rows))
    figure = _figure(8.5, 1.6 + 0.95 * len(asked))
    axes = figure.add_subplot()
    for place, key in enumerate(asked):
        own = [row for row in rows if (row["subject"], row["prompts"]) == key and row[metric] is not None]
        for kind, colour, offset in (("draw", _DRAWS, -0.18), ("cell", _CELLS, 0.18)):
            found = summarise([row[metric] for row in own if row["kind"] == kind])
            if found:
                y = place + offset
                axes.plot([found.lowest, found.highest], [y, y], color="black", linewidth=1, marker="|")
                axes.barh(y, found.upper - found.lower, 0.28, found.lower, color=colour, edgecolor="black", zorder=2)
                axes.plot([found.median] * 2, [y - 0.14, y + 0.14], color="black", linewidth=2, zorder=3)
        for row in (row for row in own if row["kind"] == "mode"):
            marker, colour = _MARKS[row["mode"]]
            axes.plot([row[metric]], [place], marker=marker, color=colour, markeredgecolor="white", markersize=9)
    for mode, (marker, colour) in _MARKS.items():
        axes.plot([], [], marker=marker, color=colour, linestyle="", label=mode)
    axes.plot([], [], color=_DRAWS, linewidth=8, label="sampled draws")
    axes.plot([], [], color=_CELLS, linewidth=8, label="grid of wordings")
    axes.set_yticks(range(len(asked)), [f"{subject}\n{prompts}" for subject, prompts in asked])
    axes.set_ylim(len(asked) - 0.4, -0.6)
    axes.set(xlabel=f"{LABELS[metric]} on test (reported, not chosen by)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    save_png(figure, path)


def heat_plot(cells: Sequence[Mapping[str, Any]], metric: str, path: Path) -> None:
    """One heat map per subject and prompt set: rows are templates, columns the words; one colour scale for all.

    Args:
        cells: Rows of the kind `cell`; a score that is None stays white.
        metric: Which score.
        path: The PNG.
    """
    asked = list(dict.fromkeys((row["subject"], row["prompts"]) for row in cells))
    templates = list(dict.fromkeys(row["template"] for row in cells))
    words = list(dict.fromkeys((row["organ"], row["magnification"], row["stain"]) for row in cells))
    scores = [row[metric] for row in cells if row[metric] is not None] or [0.0]
    figure = _figure(5.0 + 0.62 * len(words), 1.4 + len(asked) * (0.5 + 0.42 * len(templates)))
    panels = figure.subplots(len(asked), 1, squeeze=False, sharex=True)[:, 0]
    image = None
    for axes, key in zip(panels, asked, strict=True):
        grid = np.full((len(templates), len(words)), np.nan)
        for row in (row for row in cells if (row["subject"], row["prompts"]) == key and row[metric] is not None):
            place = templates.index(row["template"]), words.index((row["organ"], row["magnification"], row["stain"]))
            grid[place] = row[metric]
            shade = (row[metric] - min(scores)) / max(max(scores) - min(scores), 1e-9)
            axes.text(
                place[1], place[0], f"{row[metric]:.2f}", ha="center", va="center", fontsize=7,
                color="black" if shade > 0.5 else "white",
            )  # fmt: skip
        image = axes.imshow(grid, cmap="viridis", vmin=min(scores), vmax=max(scores), aspect="auto")
        axes.set_title(f"{key[0]}, {key[1]}", fontsize=9, loc="left")
        axes.set_yticks(range(len(templates)), [worded(template) for template in templates], fontsize=7)
    shown = [", ".join(word for word in group if word) or "(no words)" for group in words]
    panels[-1].set_xticks(range(len(words)), shown, rotation=40, ha="right", fontsize=7)
    if image is not None:
        figure.colorbar(image, ax=list(panels), label=LABELS[metric], shrink=0.8)
    save_png(figure, path)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
