"""Layout of a synthetic slide: pieces of tissue on glass, regions of one tissue class each, and artefacts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from PIL import Image, ImageDraw

GLASS = 0
PEN, FOLD, BLUR = 1, 2, 3
ARTEFACTS = {"pen": PEN, "fold": FOLD, "blur": BLUR}
"""Values in an artefact mask; 0 means no artefact."""
STRIP = 256
"""Number of rows that are computed at a time, to limit memory."""


@dataclass(frozen=True)
class SmoothNoise:
    """Value noise over a slide, with unit standard deviation at knots that are `spacing` pixels apart."""

    knots: Float32[np.ndarray, "k k"]
    spacing: float
    size: int

    @classmethod
    def draw(cls, rng: np.random.Generator, size: int, spacing: float) -> "SmoothNoise":
        """Draw the noise for a square slide with an edge of `size` pixels."""
        count = int(np.ceil(size / spacing)) + 1
        return cls(rng.standard_normal((count, count), dtype=np.float32), spacing, size)

    def rows(self, start: int, stop: int) -> Float32[np.ndarray, "h w"]:
        """Interpolate the rows from `start` to `stop` (exclusive)."""
        low, weight = self._knots_at(np.arange(start, stop))
        rows = self.knots[low] * (1 - weight)[:, None] + self.knots[low + 1] * weight[:, None]
        low, weight = self._knots_at(np.arange(self.size))
        return np.asarray(rows[:, low] * (1 - weight) + rows[:, low + 1] * weight, dtype=np.float32)

    def _knots_at(self, pixels: np.ndarray) -> tuple[np.ndarray, Float32[np.ndarray, " m"]]:
        """Return the index of the knot before each pixel, and the weight of the knot after it."""
        position = pixels / self.spacing
        low = position.astype(np.int64)
        weight = (position - low).astype(np.float32)
        return low, weight * weight * (3 - 2 * weight)


@dataclass(frozen=True)
class SlideLayout:
    """Tissue at every pixel of a slide.

    Attributes:
        labels: 0 for glass, k + 1 for class k of `CLASSES`.
        pieces: 0 for glass, else the number of the tissue piece, from 1.
        ellipses: Centre (x, y) and semi-axes of each piece in pixels; noise makes the outlines irregular.
    """

    labels: UInt8[np.ndarray, "size size"]
    pieces: UInt8[np.ndarray, "size size"]
    ellipses: Float[np.ndarray, "p 4"]


@dataclass(frozen=True)
class _Warp:
    """Displacement of pixels that makes straight outlines and boundaries irregular."""

    coarse: tuple[SmoothNoise, SmoothNoise]
    fine: tuple[SmoothNoise, SmoothNoise]

    @classmethod
    def draw(cls, rng: np.random.Generator, size: int) -> "_Warp":
        """Draw the displacement for a slide whose edge is `size` pixels."""
        coarse, fine = ([SmoothNoise.draw(rng, size, size / knots) for _ in range(2)] for knots in (7, 32))
        return cls((coarse[0], coarse[1]), (fine[0], fine[1]))

    def rows(self, start: int, stop: int) -> tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
        """Return the displaced x and y of these rows."""
        size = self.coarse[0].size
        x, y = (
            0.028 * size * coarse.rows(start, stop) + 0.007 * size * fine.rows(start, stop)
            for coarse, fine in zip(self.coarse, self.fine, strict=True)
        )
        return x + np.arange(size, dtype=np.float32), y + np.arange(start, stop, dtype=np.float32)[:, None]


def draw_layout(rng: np.random.Generator, size: int, pieces: int, main: int, others: Sequence[int]) -> SlideLayout:
    """Draw the layout of a slide.

    Args:
        size: Edge length of the slide in pixels.
        pieces: Number of tissue pieces, 1 or 2.
        main: Class of the largest region of each piece.
        others: Classes of the other regions.
    """
    ellipses = _draw_ellipses(rng, size, pieces)
    seeds = np.concatenate([_draw_seeds(rng, ellipse, number) for number, ellipse in enumerate(ellipses, start=1)])
    warp = _Warp.draw(rng, size)
    areas = np.zeros(len(seeds), dtype=np.int64)
    regions, piece = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
    for start in range(0, size, STRIP):
        rows = slice(start, min(start + STRIP, size))
        x, y = warp.rows(rows.start, rows.stop)
        piece[rows] = _pieces_at(x, y, ellipses)
        _clear_glass(piece, rows, pieces)
        nearest = np.full(x.shape, np.inf, np.float32)
        for number, (seed_x, seed_y, seed_piece) in enumerate(seeds):
            distance = (x - np.float32(seed_x)) ** 2 + (y - np.float32(seed_y)) ** 2
            closer = (distance < nearest) & (piece[rows] == seed_piece)
            nearest[closer] = distance[closer]
            regions[rows][closer] = number
        areas += np.bincount(regions[rows][piece[rows] > 0], minlength=len(seeds))
    classes = _draw_classes(rng, areas, seeds[:, 2], main, others)
    return SlideLayout(np.where(piece > 0, classes[regions] + 1, GLASS).astype(np.uint8), piece, ellipses)


def _draw_ellipses(rng: np.random.Generator, size: int, pieces: int) -> Float[np.ndarray, "p 4"]:
    """Draw the ellipses of the pieces, one above the other; the second semi-axis is vertical."""
    if pieces == 1:
        middle, axes = rng.uniform(0.46, 0.54, (1, 2)), rng.uniform(0.32, 0.4, (1, 2))
    else:
        middle = np.array([[0.5, 0.27], [0.5, 0.73]]) + rng.uniform(-0.03, 0.03, (2, 2)) * (1, 0.3)
        axes = np.stack([rng.uniform(0.32, 0.42, 2), rng.uniform(0.16, 0.19, 2)], axis=1)
    return np.concatenate([middle, axes], axis=1) * size


def _draw_seeds(rng: np.random.Generator, ellipse: Float[np.ndarray, "4"], piece: int) -> Float[np.ndarray, "s 3"]:
    """Draw the seeds (x, y, piece) of the regions of a piece: one near the centre, the others around it."""
    count = int(rng.integers(5, 8))
    angle = rng.uniform(0, 2 * np.pi) + np.arange(count - 1) * 2 * np.pi / (count - 1) + rng.normal(0, 0.2, count - 1)
    out = np.concatenate([[rng.uniform(0, 0.15)], rng.uniform(0.55, 0.9, count - 1)])
    angle = np.concatenate([[rng.uniform(0, 2 * np.pi)], angle])
    x, y = ellipse[0] + ellipse[2] * out * np.cos(angle), ellipse[1] + ellipse[3] * out * np.sin(angle)
    return np.stack([x, y, np.full(count, piece)], axis=1)


def _pieces_at(
    x: Float32[np.ndarray, "h w"], y: Float32[np.ndarray, "h w"], ellipses: Float[np.ndarray, "p 4"]
) -> UInt8[np.ndarray, "h w"]:
    piece = np.zeros(x.shape, dtype=np.uint8)
    for number, (middle_x, middle_y, across, down) in enumerate(ellipses, start=1):
        inside = ((x - middle_x) / across) ** 2 + ((y - middle_y) / down) ** 2 < 1
        piece[inside] = number
    return piece


def _clear_glass(piece: UInt8[np.ndarray, "size size"], rows: slice, pieces: int) -> None:
    """Clear the margin of the slide, and a gap between two pieces."""
    size = len(piece)
    margin = size // 64
    y = np.arange(rows.start, rows.stop)
    glass = (y < margin) | (y >= size - margin)
    if pieces == 2:
        glass |= np.abs(y - size // 2) < margin
    piece[rows][glass] = GLASS
    piece[rows, :margin] = GLASS
    piece[rows, size - margin :] = GLASS


def _draw_classes(
    rng: np.random.Generator,
    areas: Int64[np.ndarray, " r"],
    piece_of_region: Float[np.ndarray, " r"],
    main: int,
    others: Sequence[int],
) -> UInt8[np.ndarray, " r"]:
    """Draw the class of each region: the main class for the largest region of a piece, and all classes for the rest."""
    classes = np.zeros(len(areas), dtype=np.uint8)
    for number in np.unique(piece_of_region):
        members = np.flatnonzero(piece_of_region == number)
        largest = members[np.argmax(areas[members])]
        rest = members[members != largest]
        classes[largest] = main
        classes[rest] = np.resize(np.append(rng.permutation(np.asarray(others)), main), len(rest))
    return classes


@dataclass(frozen=True)
class Artefacts:
    """Artefacts of a slide.

    Attributes:
        mask: Values of `ARTEFACTS`, 0 elsewhere.
        shift: Displacement (rows, columns) of the upper layer of folded tissue.
    """

    mask: UInt8[np.ndarray, "size size"]
    shift: tuple[int, int]


def draw_artefacts(rng: np.random.Generator, layout: SlideLayout) -> Artefacts:
    """Draw a fold across a piece, a blurred patch, and a pen mark that crosses the outline of a piece."""
    size = len(layout.labels)
    mask = np.zeros((size, size), dtype=np.uint8)
    ellipse = layout.ellipses[rng.integers(len(layout.ellipses))]
    angle = rng.uniform(0, 2 * np.pi)
    band = _stroke(size, _arc(rng, ellipse, angle, angle + rng.uniform(2.4, 3.4), (0.75, 0.75)), max(6, size // 70))
    mask[band & (layout.pieces > 0)] = FOLD
    middle = _on_ellipse(ellipse, angle + rng.uniform(3.9, 4.8), 0.55)
    mask[_patch(rng, size, middle, size * rng.uniform(0.07, 0.1))] = BLUR
    ellipse = layout.ellipses[rng.integers(len(layout.ellipses))]
    angle = rng.uniform(0, 2 * np.pi)
    mask[_stroke(size, _arc(rng, ellipse, angle, angle + rng.uniform(0.9, 1.4), (0.75, 1.3)), max(8, size // 45))] = PEN
    back = -1 if rng.random() < 0.5 else 1
    return Artefacts(mask, (back * int(size * rng.uniform(0.02, 0.05)), int(size * rng.uniform(0.02, 0.05))))


def _on_ellipse(ellipse: Float[np.ndarray, "4"], angle: float, out: float) -> tuple[float, float]:
    return float(ellipse[0] + ellipse[2] * out * np.cos(angle)), float(ellipse[1] + ellipse[3] * out * np.sin(angle))


def _arc(
    rng: np.random.Generator, ellipse: Float[np.ndarray, "4"], start: float, stop: float, out: tuple[float, float]
) -> list[tuple[float, float]]:
    """Return points of an irregular curve around the centre of a piece.

    Args:
        ellipse: Centre and semi-axes of the piece: x, y, semi-axis in x, semi-axis in y.
        start: Angle of the first point in radians.
        stop: Angle of the last point.
        out: Distances of the first and the last point from the centre; 1 is the outline.
    """
    angles = np.linspace(start, stop, 40)
    phase = rng.uniform(0, 2 * np.pi, 2)
    wave = 0.1 * np.sin(2.3 * (angles - start) + phase[0]) + 0.03 * np.sin(9 * angles + phase[1])
    wobble = np.linspace(*out, len(angles)) * (1 + wave)
    return [_on_ellipse(ellipse, angle, radius) for angle, radius in zip(angles, wobble, strict=True)]


def _stroke(size: int, points: list[tuple[float, float]], width: int) -> Bool[np.ndarray, "size size"]:
    canvas = Image.new("1", (size, size))
    pen = ImageDraw.Draw(canvas)
    pen.line(points, fill=1, width=width, joint="curve")
    for x, y in (points[0], points[-1]):  # round ends
        pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=1)
    return np.array(canvas)


def _patch(
    rng: np.random.Generator, size: int, middle: tuple[float, float], radius: float
) -> Bool[np.ndarray, "size size"]:
    """Return a round patch with an irregular outline."""
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    phase = rng.uniform(0, 2 * np.pi, 2)
    out = radius * (1 + 0.15 * np.sin(2 * angles + phase[0]) + 0.08 * np.sin(5 * angles + phase[1]))
    points = np.stack([middle[0] + out * np.cos(angles), middle[1] + out * np.sin(angles)], axis=1)
    canvas = Image.new("1", (size, size))
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in points], fill=1)
    return np.array(canvas)
