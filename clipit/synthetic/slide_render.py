"""Render a synthetic slide: a mosaic of fields, artefacts, and the stain and scanner of a centre."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from scipy.ndimage import gaussian_filter

from clipit.synthetic.fields import SIZE
from clipit.synthetic.latents import CLASSES, HIGH, LOW, Latents, attributes
from clipit.synthetic.render import GRAIN, SENSOR_NOISE, UNEVEN, blur_maps, draw_scans
from clipit.synthetic.slide_layout import BLUR, FOLD, PEN, STRIP, Artefacts, SlideLayout, SmoothNoise
from clipit.synthetic.tissues import draw_tissue

_STEP = 40
_MARGIN = (SIZE - _STEP) // 2
"""Fields have a grid spacing of `_STEP` pixels and a margin of `_MARGIN` on each side, within which seams vary."""
_CELL_ROWS = 8
"""Number of grid rows that are drawn at a time."""
_BATCH = 256  # fields drawn at a time; changing it changes the images, because batches share one generator
_FOCUS = 160.0
"""Grid spacing in pixels of the noise whose peaks become the foci of mutant morphology."""

INKS = {"blue": (0.10, 0.16, 0.62), "green": (0.05, 0.45, 0.22), "black": (0.08, 0.08, 0.10)}
"""Colours of pen marks on glass."""
_INK_COVER = 0.88  # mean opacity of a pen mark
_OUT_OF_FOCUS = 3.5
"""Standard deviation in pixels of the blur of an out-of-focus patch."""

Map = Float32[np.ndarray, "size size"]


def draw_status(
    rng: np.random.Generator, labels: UInt8[np.ndarray, "size size"], share: float
) -> Bool[np.ndarray, "size size"]:
    """Draw foci of mutant morphology, by thresholding smooth noise.

    Args:
        labels: 0 for glass, k + 1 for class k of `CLASSES`.
        share: Fraction of the tumour pixels in foci; the result differs from it by at most about one percentage point.
    """
    size = len(labels)
    status = np.zeros((size, size), dtype=np.bool_)
    tumour = (labels == LOW + 1) | (labels == HIGH + 1)
    if share <= 0 or not tumour.any():
        return status
    noise = SmoothNoise.draw(rng, size, _FOCUS)
    strips = [slice(start, min(start + STRIP, size)) for start in range(0, size, STRIP)]
    sample = [noise.rows(rows.start, rows.stop)[::4, ::4][tumour[rows][::4, ::4]] for rows in strips]
    values = np.concatenate(sample)
    threshold = np.quantile(values, 1 - share) if len(values) else np.float32(0)
    for rows in strips:
        status[rows] = tumour[rows] & (noise.rows(rows.start, rows.stop) >= threshold)
    return status


def draw_stains(
    rng: np.random.Generator,
    labels: UInt8[np.ndarray, "size size"],
    status: Bool[np.ndarray, "size size"] | None = None,
) -> tuple[Map, Map]:
    """Draw the concentrations of haematoxylin and eosin.

    In each cell of a grid, each tissue has a field of 64 px, drawn like a tile without a second tissue; tumour with the
    mutant morphology (`status`) has a separate field. Each pixel is taken from the field of its tissue.
    """
    size = len(labels)
    haematoxylin, eosin = np.zeros((size, size), np.float32), np.zeros((size, size), np.float32)
    warps = [SmoothNoise.draw(rng, size, 12.0), SmoothNoise.draw(rng, size, 12.0)]
    side = size // _STEP + 3  # the first cell begins at -_STEP
    plain = side * side * len(CLASSES)  # number of fields without the mutant morphology
    # Fibres change direction slowly, because the bundled VLM mistakes independent directions for another tissue.
    directions = rng.uniform(0, np.pi) + 0.6 * SmoothNoise.draw(rng, side, 8.0).rows(0, side).reshape(-1)
    for first in range(0, side, _CELL_ROWS):
        start, stop = (max(0, (row - 1) * _STEP) for row in (first, first + _CELL_ROWS))
        rows = slice(max(0, start - _MARGIN), min(size, stop + _MARGIN))
        if rows.start >= rows.stop:
            continue
        y = np.arange(rows.start, rows.stop)[:, None]
        x = np.arange(size)[None, :]
        cell_row, cell_column = (
            (position + _STEP + np.clip(6 * warp.rows(rows.start, rows.stop), -11, 11)).astype(np.int64) // _STEP
            for position, warp in zip((y, x), warps, strict=True)
        )
        inside = (labels[rows] > 0) & (cell_row >= first) & (cell_row < first + _CELL_ROWS)
        key = ((cell_row * side + cell_column) * len(CLASSES) + labels[rows].astype(np.int64) - 1)[inside]
        if status is not None:
            key += plain * status[rows][inside]
        used = np.unique(key)
        if not len(used):
            continue
        cell, tissue = np.divmod(used % plain, len(CLASSES))
        fields = _draw_fields(rng, tissue, used // plain, directions[cell].astype(np.float32))
        where = (
            np.searchsorted(used, key),
            (y - (cell_row - 1) * _STEP + _MARGIN)[inside],
            (x - (cell_column - 1) * _STEP + _MARGIN)[inside],
        )
        haematoxylin[rows][inside], eosin[rows][inside] = fields[0][where], fields[1][where]
    return haematoxylin, eosin


def _draw_fields(
    rng: np.random.Generator,
    tissue: Int64[np.ndarray, " n"],
    status: Int64[np.ndarray, " n"],
    direction: Float32[np.ndarray, " n"],
) -> Float32[np.ndarray, "2 n 64 64"]:
    fields = []
    for start in range(0, len(tissue), _BATCH):
        batch = tissue[start : start + _BATCH]
        latents = Latents(
            batch,
            np.full_like(batch, -1),
            np.zeros(len(batch)),
            **attributes(rng, batch),
            status=status[start : start + _BATCH],
            direction=direction[start : start + _BATCH],
        )
        layer = draw_tissue(rng, latents)
        fields.append(np.stack([layer.haematoxylin, layer.eosin]))
    return np.concatenate(fields, axis=1)


def add_fold(maps: Sequence[Map], artefacts: Artefacts) -> None:
    """Add the displaced tissue to the tissue below the fold, in place."""
    rows, columns = np.nonzero(artefacts.mask == FOLD)
    size = len(artefacts.mask)
    above = ((rows + artefacts.shift[0]).clip(0, size - 1), (columns + artefacts.shift[1]).clip(0, size - 1))
    for stain in maps:
        stain[rows, columns] = 1.15 * stain[rows, columns] + stain[above]


def scan_slide(
    rng: np.random.Generator,
    haematoxylin: Map,
    eosin: Map,
    layout: SlideLayout,
    centres: Sequence[int],
    artefacts: Artefacts | None = None,
    ink: str = "blue",
) -> UInt8[np.ndarray, "size size 3"]:
    """Stain and scan a slide, with one stain per piece and one scanner.

    The Beer-Lambert law is applied as for tiles (`clipit.synthetic.render.scan`).

    Args:
        centres: Centre that determines the stain of each piece; the first one also determines the scanner.
        artefacts: Pen marks and out-of-focus patches; None for a clean slide.
        ink: Pen colour, a key of `INKS`.
    """
    size = len(haematoxylin)
    scans = draw_scans(rng, np.asarray(centres, dtype=np.int64))
    colours, gains = scans.colours.astype(np.float32), scans.gains.astype(np.float32)
    uneven, grain = SmoothNoise.draw(rng, size, SIZE / 2), SmoothNoise.draw(rng, size, SIZE / 24)
    streaks = SmoothNoise.draw(rng, size, 9.0)
    image = np.empty((size, size, 3), dtype=np.uint8)
    for start in range(0, size, STRIP):
        stop = min(start + STRIP, size)
        low, high = max(0, start - 2), min(size, stop + 2)  # the blur reaches two pixels
        strip_rows = slice(start - low, stop - low)
        stains = np.stack([haematoxylin[low:high] * (1 + GRAIN * grain.rows(low, high)), eosin[low:high]])
        stains = blur_maps(stains, np.repeat(scans.spread[:1], 2))[:, strip_rows]
        piece = np.maximum(layout.pieces[start:stop], 1).astype(np.int64) - 1
        stains *= (1 + UNEVEN * uneven.rows(start, stop)) * np.moveaxis(gains[piece], -1, 0)
        density = np.maximum(np.einsum("shw,hwsc->hwc", stains, colours[piece]), 0)
        light = scans.white[0].astype(np.float32) * np.exp(-density)
        if artefacts is not None:
            pen = artefacts.mask[start:stop] == PEN
            cover = np.clip(_INK_COVER + 0.05 * streaks.rows(start, stop), 0, 0.97)[pen][:, None]
            light[pen] = (1 - cover) * light[pen] + cover * np.asarray(INKS[ink], np.float32)
        light += SENSOR_NOISE * rng.standard_normal(light.shape, dtype=np.float32)
        image[start:stop] = np.clip(np.rint(light * 255), 0, 255)
    if artefacts is not None:
        _defocus(image, artefacts)
    return image


def _defocus(image: UInt8[np.ndarray, "size size 3"], artefacts: Artefacts) -> None:
    """Blur the out-of-focus patch in place."""
    rows, columns = np.nonzero(artefacts.mask == BLUR)
    if not len(rows):
        return
    reach = int(4 * _OUT_OF_FOCUS)
    box = tuple(slice(max(0, int(at.min()) - reach), int(at.max()) + reach + 1) for at in (rows, columns))
    blurred = gaussian_filter(image[box].astype(np.float32), (_OUT_OF_FOCUS, _OUT_OF_FOCUS, 0))
    patch = artefacts.mask[box] == BLUR
    image[box][patch] = np.rint(blurred[patch])
