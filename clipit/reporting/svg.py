"""Elements of SVG charts that take their colours from the page around them (light or dark); every text is escaped."""

import math
from collections.abc import Sequence
from html import escape

Number = float | int


def drawing(width: Number, height: Number, label: str, parts: Sequence[str]) -> str:
    """A whole picture.

    Args:
        width: In pixels.
        height: In pixels.
        label: What it shows, for who does not see it.
        parts: Elements, the first at the back.
    """
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(label)}" {size}>'
    return f"{head}{''.join(parts)}</svg>"


def line(kind: str, x1: Number, y1: Number, x2: Number, y2: Number) -> str:
    """A straight line; `kind` is a class of the page's style."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def path(kind: str, points: Sequence[tuple[Number, Number | None]], told: str) -> str:
    """A line through points, broken where one has no height; a point alone becomes a dash."""
    drawn, pen = [], "M"
    for x, y in points:
        if y is not None:
            drawn.append(f"{pen}{x:.1f} {y:.1f}" + ("h1" if pen == "M" else ""))
        pen = "M" if y is None else "L"
    return f'<path class="{kind}" d="{"".join(drawn)}"><title>{escape(told)}</title></path>'


def box(kind: str, x: Number, y: Number, width: Number, height: Number, told: str) -> str:
    """A bar; `told` is shown under the pointer."""
    size = f'width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" {size}><title>{escape(told)}</title></rect>'


def dot(kind: str, x: Number, y: Number, told: str) -> str:
    """A dot; `told` is shown under the pointer."""
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"><title>{escape(told)}</title></circle>'


def words(x: Number, y: Number, text: str, *, anchor: str = "start", kind: str = "") -> str:
    """Text that starts at, ends at or stands around (`start`, `end`, `middle`) a place."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def upright(x: Number, y: Number, text: str) -> str:
    """Text turned by a quarter, around a place."""
    turned = f'transform="translate({x:.1f} {y:.1f}) rotate(-90)" text-anchor="middle"'
    return f"<text {turned}>{escape(text)}</text>"


def frame(left: Number, top: Number, width: Number, height: Number, x_label: str, y_label: str) -> list[str]:
    """Two axes with their titles (none where empty)."""
    foot = top + height
    parts = [f'<path class="axis" d="M{left} {top}V{foot}H{left + width}"/>']
    if x_label:
        parts.append(words(left + width / 2, foot + 36, x_label, anchor="middle"))
    if y_label:
        parts.append(upright(16, top + height / 2, y_label))
    return parts


def bounds(low: Number, high: Number) -> tuple[Number, Number]:
    """A little more than from the lowest to the highest value, and never nothing."""
    spare = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
    return low - spare, high + spare


def ticks(low: Number, high: Number) -> list[float]:
    """Round numbers within the bounds, three to seven of them."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    return [float(round(n * step, 12)) for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def decades(low: Number, high: Number) -> list[float]:
    """1, 2 and 5 times the powers of ten within the bounds; the powers alone where these would be many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**power for power in powers for m in ((1, 2, 5) if len(powers) <= 4 else (1,))]
    return [float(f"{tick:g}") for tick in found if low <= tick <= high]
