"""A score against the values of a swept key, as a PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from clipit.reporting.png import save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that colour-blind readers can tell apart (Okabe and Ito, 2008).
_CHOOSING, _SHOWN = "#0072B2", "#D55E00"
_LOGARITHMIC_FROM = 8.0  # largest over smallest value

SweepPoints = Sequence[tuple[object, float | None, float | None]]
"""Value of the key, validation score and test score of each trial; None where a score is not defined."""


def sweep_plot(panels: Mapping[str, SweepPoints], path: Path, *, metric: str, tested: str, title: str = "") -> None:
    """One panel per swept key: each trial (seed) a dot, a line through the means of each value.

    Args:
        panels: Key -> its trials; other keys may differ among them.
        path: The PNG.
        metric: The validation score, which chooses.
        tested: The test score; "" when there is none. It is drawn hollow and beside, since it chooses nothing.
        title: Heading.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 + 4.4 * len(panels), 4.2), layout="constrained")
    for axes, (key, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        place = _places(axes, [value for value, _, _ in points])
        validation = [(place[str(value)], score) for value, score, _ in points if score is not None]
        test = [(place[str(value)], score) for value, _, score in points if score is not None]
        _draw(axes, validation, _CHOOSING, "-", f"validation {metric}", filled=True)
        if tested:
            _draw(axes, test, _SHOWN, ":", f"test {tested} (chooses nothing)", filled=False)
        if not validation and not test:
            axes.text(0.5, 0.5, "no score is defined", ha="center", transform=axes.transAxes)
        axes.set(xlabel=key, ylabel="score")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(title)
    save_png(figure, path)


def means(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The mean score at each place, from left to right."""
    found: dict[float, list[float]] = {}
    for x, score in points:
        found.setdefault(x, []).append(score)
    return [(x, mean(found[x])) for x in sorted(found)]


def _places(axes: "Axes", values: Sequence[object]) -> dict[str, float]:
    """Where each value stands: numbers to scale (logarithmic when they span much), words side by side."""
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
    if low > 0 and high / low >= _LOGARITHMIC_FROM:
        axes.set_xscale("log")
        axes.set_xticks([], minor=True)
    axes.set_xticks(list(numbers.values()), list(numbers))
    return numbers


def _draw(
    axes: "Axes", points: Sequence[tuple[float, float]], colour: str, style: str, label: str, *, filled: bool
) -> None:
    face = colour if filled else "none"
    axes.scatter([x for x, _ in points], [y for _, y in points], s=22, facecolors=face, edgecolors=colour, alpha=0.7)
    line = means(points)
    axes.plot([x for x, _ in line], [y for _, y in line], color=colour, linestyle=style, linewidth=1.4, label=label)
