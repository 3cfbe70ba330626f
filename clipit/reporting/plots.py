"""Matplotlib figures in one style, written as PNG or embedded in a page as SVG.

Decorate drawing functions with `in_style`; write files with `save_plot`, and SVG for pages with `inline_svg`. Figures
use matplotlib's object-oriented interface, which needs neither global state nor a display.
"""

import io
import logging
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from html import escape, unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from jaxtyping import Int64
from markupsafe import Markup

from clipit.errors import ClipitError, counted
from clipit.output_files.artifacts import whole_file
from clipit.reporting.tables import MAX_CLASSES
from clipit.reporting.training_curves import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that colour-blind readers can tell apart (Okabe and Ito, 2008)."""
LINE_STYLES = ("-", "--", ":", "-.")
_STYLE: dict[Any, Any] = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],  # shipped with matplotlib, so the same on every machine
    "grid.alpha": 0.3,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text in a page can be searched and read aloud
    "svg.hashsalt": "clipit",  # otherwise the ids in an SVG are random
    "text.parse_math": False,  # a class name with two dollar signs is not a formula
}
_MANY_CLASSES = 5  # with more classes, names of over 4 characters are rotated; otherwise, those of over 9
_MANY_POINTS = 40  # lines with more points have no markers
_MAX_POINTS = 500  # points drawn per line
_MANY_DECADES = 1e4  # ratio of values at and above which a logarithmic axis labels only powers of ten

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def in_style(draw: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that it draws in the style of the package."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> T:
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return styled


def new_figure(width: float, height: float, *, fixed: bool = False) -> "Figure":
    """Create an empty figure.

    Args:
        width: Width in inches.
        height: Height in inches.
        fixed: Whether margins are fixed, which is faster, instead of adapting to the content.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=None if fixed else "constrained")


@in_style
def save_plot(figure: "Figure", path: Path, compression: int = 6) -> None:
    """Write a figure as PNG, atomically; the same figure gives the same bytes.

    If matplotlib cannot render the figure, the reason is logged and drawn instead, so that plots never stop an
    evaluation.

    Args:
        figure: Figure drawn in the style of the package.
        path: Output file.
        compression: PNG compression level, from 1 (fast) to 9 (small).
    """
    pillow = {"compress_level": compression}
    metadata = {"Software": None}
    with whole_file(path) as temporary, _missing_glyphs_allowed():
        _render(
            figure,
            lambda f: f.savefig(temporary, format="png", dpi=110, metadata=metadata, pil_kwargs=pillow),
            path.name,
        )


@in_style
def inline_svg(figure: "Figure", label: str) -> Markup:
    """Render a figure as an SVG element for a page; the same figure gives the same text.

    Black becomes the text colour of the page, so that figures are readable in dark mode. Artists whose `gid` comes from
    `tooltip` show its text on hover. If matplotlib cannot render the figure, the element contains the reason.

    Args:
        figure: Figure drawn in the style of the package.
        label: Alternative text.
    """
    import matplotlib

    stream = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))

    def write(figure: "Figure") -> None:
        stream.truncate(stream.seek(0))
        figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)

    with matplotlib.rc_context({"svg.hashsalt": label}), _missing_glyphs_allowed():  # ids must be unique within a page
        _render(figure, write, label)
    text = stream.getvalue()
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text[text.index("<svg") :], count=1, flags=re.DOTALL)
    text = re.sub(r'<g id="tooltip:([^"]*)">', lambda match: f"<g><title>{unescape(match[1])}</title>", text)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r"(fill|stroke): #000000", r"\1: currentColor", text)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1))


def _render(figure: "Figure", write: "Callable[[Figure], object]", name: str) -> None:
    """Write a figure; if matplotlib cannot render it, log the reason and write a figure with the reason instead."""
    try:
        write(figure)
    except (OSError, ClipitError):
        raise
    except Exception as error:
        reason = f"{name} cannot be drawn: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        logger.info(f"note: {reason}")
        failed = new_figure(6.0, 1.0, fixed=True)
        failed.text(0.5, 0.5, reason, ha="center", va="center", fontsize=7, wrap=True)
        write(failed)


def tooltip(text: str) -> str:
    """Return a `gid` that makes an artist show this text on hover."""
    return f"tooltip:{escape(text)}"


@contextmanager
def _missing_glyphs_allowed() -> Iterator[None]:
    """Silence warnings about characters that the font lacks, such as emoji; a PNG shows them as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        yield


@in_style
def plot_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str], *, title: str = "") -> "Figure":
    """Plot a confusion matrix: numbers are tile counts, and shades are fractions of the true class (row).

    With more than 40 classes, cells have no numbers and only every n-th class is named, to limit size and time.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.6 + 0.62 * min(len(classes), MAX_CLASSES)
    ticks = range(0, len(classes), -(-len(classes) // MAX_CLASSES))
    names = [classes[number] for number in ticks]
    figure = new_figure(side + 0.8, side)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    slanted = max(map(len, classes)) > (4 if len(classes) > _MANY_CLASSES else 9)
    axes.set_xticks(ticks, names, rotation=45 if slanted else 0, ha="right" if slanted else "center")
    axes.set_yticks(ticks, names)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    for (row, column), share in np.ndenumerate(shares) if len(classes) <= MAX_CLASSES else ():
        colour = "white" if share > 0.55 else "black"
        axes.text(column, row, f"{int(counts[row, column])}", ha="center", va="center", color=colour, fontsize=9)
    figure.colorbar(image, ax=axes, label="fraction of the true class", shrink=0.8)
    return figure


@in_style
def plot_training_curves(series: Series, losses: Collection[str], *, title: str = "") -> "Figure":
    """Plot training curves: one panel for losses, one for validation scores, one for the learning rate.

    Args:
        series: Series from `read_curves`; speed and memory are not drawn.
        losses: Names of the series that are losses.
        title: Heading.
    """
    panels = training_panels(series, losses)
    figure = new_figure(9.0, 0.8 + 2.6 * max(1, len(panels)))
    rows = figure.subplots(max(1, len(panels)), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, lines) in zip(rows, panels.items(), strict=False):
        curves = {name.replace("_", " "): points for name, points in lines.items()}
        _draw_lines(axes, curves, label, logarithmic=label == "loss")
    if panels:
        rows[-1].set_xlabel("step")
    else:
        rows[0].text(0.5, 0.5, "nothing was logged", ha="center")
    figure.suptitle(title)
    return figure


def training_panels(series: Series, losses: Collection[str]) -> dict[str, Series]:
    """Group the series for `plot_training_curves` by panel; panels without a series are omitted."""
    panels: dict[str, Series] = {
        "loss": {name: points for name, points in series.items() if name in losses},
        "validation score": {name: points for name, points in series.items() if name.startswith("validation")},
        "learning rate": {name: points for name, points in series.items() if "learning_rate" in name},
    }
    return {label: lines for label, lines in panels.items() if lines}


@in_style
def plot_lines(
    series: Series, *, y_label: str, logarithmic: bool = False, colours: Mapping[str, int] | None = None
) -> "Figure":
    """Plot lines over steps.

    Args:
        series: Steps and values by name of the line. Values that are not finite leave a gap.
        y_label: Title of the vertical axis.
        logarithmic: Whether to use a logarithmic axis, provided that all values are positive and not all equal.
        colours: Colour index by name, for consistent colours across plots; by default, lines are numbered in order.
    """
    figure = new_figure(6.2 + 0.08 * max(map(len, series), default=0), 3.2)
    axes = figure.add_subplot()
    _draw_lines(axes, series, y_label, logarithmic=logarithmic, colours=colours)
    axes.set_xlabel("step")
    return figure


def _draw_lines(
    axes: "Axes", series: Series, y_label: str, *, logarithmic: bool, colours: Mapping[str, int] | None = None
) -> None:
    finite = [value for _, values in series.values() for value in values if np.isfinite(value)]
    if not finite:
        axes.text(0.5, 0.5, "no finite values were logged", ha="center", transform=axes.transAxes)
    for i, (name, (steps, values)) in enumerate(series.items()):
        indices = _thin(len(steps))
        x, y = np.asarray(steps, dtype=float)[indices], np.asarray(values, dtype=float)[indices]
        y[~np.isfinite(y)] = np.nan
        colour, style = line_style(i if colours is None else colours[name])
        marker = "o" if len(steps) <= _MANY_POINTS else ""
        axes.plot(
            x, y, style, color=colour, marker=marker, markersize=3, linewidth=1.2,
            label=name, gid=tooltip(name),
        )  # fmt: skip
        gaps = np.isnan(np.concatenate([[np.nan], y, [np.nan]]))
        isolated = gaps[:-2] & ~gaps[1:-1] & gaps[2:]  # a line through one point is invisible
        axes.plot(x[isolated], y[isolated], "o", color=colour, markersize=3)
    axes.set_ylabel(y_label)
    if logarithmic and finite and 0 < min(finite) < max(finite):
        from matplotlib.ticker import LogLocator

        axes.set_yscale("log")
        if max(finite) / min(finite) < _MANY_DECADES:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.grid(visible=True)
    if len(series) > 1 or y_label != "learning rate":
        legend_beside(axes)


def _thin(n: int) -> Int64[np.ndarray, " k"]:
    """Return at most `_MAX_POINTS` evenly spaced indices below n, including the last."""
    return np.linspace(0, n - 1, min(n, _MAX_POINTS)).round().astype(np.int64)


def line_style(i: int) -> tuple[str, str]:
    """Return colour and line style of the i-th line; solid lines come first."""
    return COLOURS[i % len(COLOURS)], LINE_STYLES[i // len(COLOURS) % len(LINE_STYLES)]


def legend_beside(axes: "Axes") -> None:
    """Put the legend of the lines to the right of the axes."""
    # By default, Matplotlib omits all labels that begin with an underscore; omit only those that it has assigned.
    lines = [line for line in axes.get_lines() if not re.fullmatch(r"_child\d+", str(line.get_label()))]
    axes.legend(handles=lines, loc="center left", bbox_to_anchor=(1.01, 0.5))


@in_style
def plot_reliability(bins: Sequence[Mapping[str, Any]], *, title: str = "") -> "Figure":
    """Plot a reliability diagram: accuracy against confidence by bin, and the number of tiles in each bin.

    Args:
        bins: Bins from `clipit.evaluation.metrics.reliability_bins`.
        title: Heading.
    """
    figure = new_figure(5.2, 5.6, fixed=True)  # the page of a comparison has one per arm
    figure.subplots_adjust(left=0.16, right=0.96, top=0.93, bottom=0.19, hspace=0.08)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, zorder=3, label="perfectly calibrated")
    labels = {"bar": "accuracy in the bin", "dot": "mean confidence in the bin"}
    for b in bins:
        middle, width = (b["low"] + b["high"]) / 2, 0.92 * (b["high"] - b["low"])
        text = f"confidence {b['low']:.2f} to {b['high']:.2f}: {counted(b['n'], 'tile')}"
        if b["n"]:
            text += f", accuracy {b['accuracy']:.3f}, mean confidence {b['confidence']:.3f}"
            (bar,) = upper.bar(middle, b["accuracy"], width=width, color=COLOURS[5], label=labels.pop("bar", None))
            bar.set_gid(tooltip(text))
            upper.plot(
                b["confidence"], b["accuracy"], "o", markersize=4, color=COLOURS[1], label=labels.pop("dot", None),
                gid=tooltip(text), clip_on=False, zorder=4,
            )  # fmt: skip
        (bar,) = lower.bar(middle, b["n"], width=width, color="0.6")
        bar.set_gid(tooltip(text))
    upper.set(ylabel="accuracy", ylim=(0, 1), xlim=(0, 1), title=title)
    figure.legend(loc="lower center", ncols=2)
    lower.set(xlabel="confidence (probability of the predicted class)", ylabel="tiles")
    lower.locator_params(axis="y", nbins=4, integer=True)
    return figure
