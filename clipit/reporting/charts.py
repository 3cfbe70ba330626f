"""Charts of the pages, as SVG."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from clipit.reporting import svg
from clipit.reporting.curves import Series

_COLOURS = 7
_MOST_POINTS = 500


def line_chart(
    series: Series,
    *,
    label: str,
    y_label: str,
    x_label: str = "step",
    logarithmic: bool = False,
    colours: Mapping[str, int] | None = None,
) -> str:
    """Lines over steps, with a legend; of over 500 points, evenly spaced ones are drawn.

    Values that are not finite leave a gap.

    Args:
        series: Name -> steps and values.
        label: What the chart shows, for who does not see it.
        y_label: Title of the vertical axis.
        x_label: Title of the horizontal axis.
        logarithmic: Whether the vertical axis is, where all values are positive and not all the same.
        colours: Name -> number of its colour, so that it has the same in several charts; by default as they come.
    """
    height, left, right, top, foot = 260, 70, 576, 12, 216
    width = right + 60 + 7 * max([10, *(len(name) for name in series)])
    finite = [value for _, values in series.values() for value in values if math.isfinite(value)]
    steps = [step for taken, _ in series.values() for step in taken]
    if not finite:
        return svg.drawing(width, 60, label, [svg.words(8, 34, "no finite value was logged")])
    low, high = min(finite), max(finite)
    logarithmic = logarithmic and 0 < low < high
    if not logarithmic:
        low, high = svg.bounds(low, high)
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def x(step: svg.Number) -> float:
        """Place of a step."""
        return left + (right - left) * (step - first) / (last - first)

    def y(value: svg.Number) -> float:
        """Place of a value."""
        share = math.log(value / low) / math.log(high / low) if logarithmic else (value - low) / (high - low)
        return foot - (foot - top) * share

    parts = []
    for tick in svg.decades(low, high) if logarithmic else svg.ticks(low, high):
        parts.append(svg.line("grid", left, y(tick), right, y(tick)))
        parts.append(svg.words(left - 6, y(tick) + 4, f"{tick:g}", anchor="end", kind="soft"))
    for tick in svg.ticks(first, last):
        parts.append(svg.words(x(tick), foot + 17, f"{tick:g}", anchor="middle", kind="soft"))
    parts += svg.frame(left, top, right - left, foot - top, x_label, y_label)
    for i, (name, (taken, values)) in enumerate(series.items()):
        number = i if colours is None else colours[name]
        kind = f"line c{number % _COLOURS}{' dash' if number >= _COLOURS else ''}"
        points = [(x(taken[n]), y(values[n]) if math.isfinite(values[n]) else None) for n in _thinned(len(taken))]
        parts.append(svg.path(kind, points, name))
        parts.append(svg.line(kind, right + 14, 24 + 20 * i, right + 38, 24 + 20 * i))
        parts.append(svg.words(right + 44, 28 + 20 * i, name))
    return svg.drawing(width, max(height, 40 + 20 * len(series)), label, parts)


def reliability_chart(bins: Sequence[Mapping[str, Any]], *, label: str) -> str:
    """Accuracy over confidence per bin, with the number of tiles of each bin below.

    Args:
        bins: Of `clipit.evaluation.metrics.reliability_bins`.
        label: What the chart shows, for who does not see it.
    """
    left, top, side, strip, gap = 64, 12, 300, 70, 14
    right, under, foot = left + side, top + side, top + side + gap + strip
    most = max([1, *(b["n"] for b in bins)])
    parts = []
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        y = under - side * tick
        parts.append(svg.line("grid", left, y, right, y))
        parts.append(svg.words(left - 6, y + 4, f"{tick:g}", anchor="end", kind="soft"))
        parts.append(svg.words(left + side * tick, foot + 17, f"{tick:g}", anchor="middle", kind="soft"))
    dots = []
    for b in bins:
        x, width, height = left + side * b["low"] + 1, side * (b["high"] - b["low"]) - 2, strip * b["n"] / most
        told = f"confidence {b['low']:.2f} to {b['high']:.2f}: {b['n']} tiles"
        if b["n"]:
            told += f", accuracy {b['accuracy']:.3f}, mean confidence {b['confidence']:.3f}"
            tall = side * b["accuracy"]
            parts.append(svg.box("bar", x, under - tall, width, tall, told))
            dots.append(svg.dot("dot high", left + side * b["confidence"], under - tall, told))
        parts.append(svg.box("count", x, foot - height, width, height, told))
    parts += [svg.line("even", left, under, right, top), *dots]
    parts.append(svg.words(left - 6, foot - strip + 10, str(most), anchor="end", kind="soft"))
    parts.append(svg.upright(16, foot - strip / 2, "tiles"))
    parts += svg.frame(left, top, side, side, "", "accuracy")
    parts += svg.frame(left, under + gap, side, strip, "confidence (probability of the predicted class)", "")
    return svg.drawing(right + 24, foot + 44, label, parts)


def dot_chart(
    scores: Mapping[str, Mapping[str, svg.Number | None]], *, label: str, x_label: str, baseline: str | None = None
) -> str:
    """One line per arm, one dot per seed, a stroke at the mean; scores that are not defined are counted as n/a.

    Args:
        scores: Arm -> seed -> score.
        label: What the chart shows, for who does not see it.
        x_label: Title of the axis.
        baseline: Arm whose mean gets a dashed line through all.
    """
    left, row, top = 24 + 7 * max([10, *(len(arm) for arm in scores)]), 26, 10
    right, foot = left + 520, top + row * max(1, len(scores))
    known = {arm: [v for v in of_arm.values() if v is not None and math.isfinite(v)] for arm, of_arm in scores.items()}
    every = [value for values in known.values() for value in values]
    low, high = svg.bounds(min(every), max(every)) if every else (0.0, 1.0)

    def x(value: svg.Number) -> float:
        """Place of a score."""
        return left + (right - left) * (value - low) / (high - low)

    parts = []
    for tick in svg.ticks(low, high):
        parts.append(svg.line("grid", x(tick), top, x(tick), foot))
        parts.append(svg.words(x(tick), foot + 17, f"{tick:g}", anchor="middle", kind="soft"))
    if baseline is not None and known.get(baseline):
        at = x(mean(known[baseline]))
        parts.append(svg.line("even", at, top, at, foot))
    for i, (arm, of_arm) in enumerate(scores.items()):
        y = top + row * (i + 0.5)
        parts.append(svg.words(left - 10, y + 4, arm, anchor="end"))
        for seed, value in of_arm.items():
            if value is not None and math.isfinite(value):
                parts.append(svg.dot("dot", x(value), y, f"{arm}, {seed}: {value:.6g}"))
        if known[arm]:
            at = x(mean(known[arm]))
            parts.append(svg.line("mean", at, y - 9, at, y + 9))
        missing = len(of_arm) - len(known[arm])
        if missing:
            parts.append(svg.words(right + 8, y + 4, f"{missing} n/a", kind="soft"))
    parts += svg.frame(left, top, right - left, foot - top, x_label, "")
    return svg.drawing(right + 70, foot + 44, label, parts)


def _thinned(n: int) -> list[int]:
    """At most `_MOST_POINTS` of n places, evenly spaced, the last among them."""
    if n <= _MOST_POINTS:
        return list(range(n))
    return [round(i * (n - 1) / (_MOST_POINTS - 1)) for i in range(_MOST_POINTS)]
