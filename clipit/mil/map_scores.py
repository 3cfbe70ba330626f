"""Compare instance maps with masks: the class of the slide label against all other classes, on the slide's tiles."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32, Int64

from clipit.errors import DataError, counted, counted_of, shortlist
from clipit.evaluation.intervals import bootstrap
from clipit.evaluation.map_agreement import MapAgreement, class_map, majority_tiles, score_map
from clipit.images.decode import ImageError
from clipit.slides.grid import SlideGrid
from clipit.slides.heat_map import map_shape
from clipit.tiles.mask_files import IGNORED, MaskClasses, decode_values
from clipit.tiles.masks import ignored_notes

IGNORED_VALUE = 255
"""Value of mask pixels that are not scored."""
_LISTED = 5  # masks or values listed in a note
CELLS = 4
"""Map pixels along each edge of a tile."""
_SHAPE_TOLERANCE = 0.02  # relative difference between the aspect ratios of a mask and its slide
FLOOR, CEILING = "floor: all tiles", "ceiling: majority class per tile"
_COLUMNS = [
    "arm", "map", "seed", "slides", "dice", "auroc", "auroc_slides",
    "dice_low", "dice_high", "auroc_low", "auroc_high", "reason",
]  # fmt: skip


@dataclass(frozen=True)
class SlideTruth:
    """Regions of a slide that show the class of its label.

    Attributes:
        cell: Level-0 pixels per map pixel.
        truth: 1 for the class, 0 for other classes, -1 for pixels that are ignored or on no tile.
        tiles: 1 for tiles in which most labelled pixels show the class, 0 for other tiles.
        value: Value of the class in the mask.
        pixels: Number of mask pixels by value.
    """

    grid: SlideGrid
    label: int
    cell: float
    truth: Int64[np.ndarray, "h w"]
    tiles: Int64[np.ndarray, " n"]
    value: int
    pixels: Mapping[int, int]


def read_truth(path: Path, grid: SlideGrid, label: int, value: int) -> SlideTruth:
    """Sample the mask of a slide at the centre of each map pixel.

    Args:
        value: Mask value of the class of the slide's label.

    Raises:
        DataError: The mask cannot be read, has a different aspect ratio from the slide, or has no labelled pixel
            on a tile.
    """

    def check_shape(columns: int, rows: int, may_be_rotated: bool = True) -> None:
        """Compare the shapes, in either orientation if the EXIF tag of the mask has not been applied yet."""
        shapes = [(columns, rows), (rows, columns)] if may_be_rotated else [(columns, rows)]
        if all(abs(tall * grid.width / (wide * grid.height) - 1) > _SHAPE_TOLERANCE for wide, tall in shapes):
            raise DataError(
                f"the mask ({columns} x {rows} pixels) does not have the aspect ratio of the slide "
                f"({grid.width} x {grid.height})",
                where=path,
                fix="use the mask of the whole slide",
            )

    try:
        values = decode_values(path, check_shape)
    except ImageError as error:
        raise DataError(f"the mask cannot be used: {error}", where=path, fix="save the mask again") from error
    rows, columns = values.shape
    check_shape(columns, rows, may_be_rotated=False)
    cell = max(1.0, grid.edge / CELLS)
    height, width = map_shape(grid, cell)
    down = ((np.arange(height) + 0.5) * cell * rows / grid.height).astype(int).clip(max=rows - 1)
    right = ((np.arange(width) + 0.5) * cell * columns / grid.width).astype(int).clip(max=columns - 1)
    sampled = values[np.ix_(down, right)]
    covered = class_map(grid, np.ones((len(grid), 1), dtype=np.float32), cell) != IGNORED
    truth = np.where((sampled == IGNORED_VALUE) | ~covered, IGNORED, sampled == value).astype(np.int64)
    if not (truth != IGNORED).any():
        raise DataError(
            "no labelled pixel of the mask lies on a tile",
            where=path,
            fix="use a mask with labels in the area of the tiles",
        )
    tiles = majority_tiles(grid, truth, 2, cell)[:, 1].astype(np.int64)
    present, counts = np.unique(values, return_counts=True)
    pixels = dict(zip(present.tolist(), counts.tolist(), strict=True))
    return SlideTruth(grid, label, cell, truth, tiles, value, pixels)


def check_values(truths: Mapping[str, SlideTruth], classes: Sequence[str], where: Path) -> list[str]:
    """Describe masks that lack their slide's class or contain ignored pixels, and values not in `mil.mask_values`.

    Args:
        truths: Truth of each slide.
        where: Folder of the masks, for the error message.

    Raises:
        DataError: The masks of a class's slides contain no pixel of that class.
    """
    names = list(truths)
    counts = [
        [sum(each.pixels.values()) - class_pixels - ignored_pixels, class_pixels, ignored_pixels]
        for each in truths.values()
        for class_pixels, ignored_pixels in [(each.pixels.get(each.value, 0), each.pixels.get(IGNORED_VALUE, 0))]
    ]
    pixels = np.array(counts, dtype=np.int64).reshape(-1, 3)  # other classes, the slide's class, ignored
    without = [name for name, row in zip(names, pixels, strict=True) if not row[1]]
    for code in sorted({each.label for each in truths.values()}):
        of_class = [name for name, each in truths.items() if each.label == code]
        if {*of_class} <= {*without}:
            values = sorted({value for name in of_class for value in truths[name].pixels})
            raise DataError(
                f"no mask of a slide labelled {classes[code]} contains the value {truths[of_class[0]].value} of this "
                f"class; these masks contain {shortlist(values)}",
                where=where,
                fix=f"correct mil.mask_values, or the masks of {shortlist(of_class, 3)}",
            )
    notes = ignored_notes(pixels, names, MaskClasses((), {}, (IGNORED_VALUE,)))
    if without:
        shown = [f"{name} (values {shortlist([*truths[name].pixels])})" for name in without]
        notes.append(
            f"{counted_of(len(without), len(names), 'mask contains', 'masks contain')} no pixel of the slide's class: "
            f"{shortlist(shown, _LISTED)}"
        )
    listed = {IGNORED_VALUE, *(each.value for each in truths.values())}
    others = Counter(value for each in truths.values() for value in each.pixels if value not in listed)
    if len(others) > 1:  # a single other value is the background
        shown = [f"{value} (in {counted(count, 'mask')})" for value, count in sorted(others.items())]
        notes.append(f"mask values that are not in mil.mask_values belong to no class: {shortlist(shown, _LISTED)}")
    return notes


@dataclass(frozen=True)
class InstanceMap:
    """Scores of one slide's tiles.

    Attributes:
        classes: Class scores; the highest one determines the class of the tile. None for attention.
        values: Score of the class of the slide's label minus the mean score over classes, or attention.
    """

    classes: Float[np.ndarray, "n c"] | None
    values: Float[np.ndarray, " n"]

    def of_tiles(self, rows: Int64[np.ndarray, " m"]) -> "InstanceMap":
        """Select tiles by row."""
        return InstanceMap(None if self.classes is None else self.classes[rows], self.values[rows])


def class_scores(scores: Float32[np.ndarray, "n c"], label: int) -> InstanceMap:
    """Return the map of class scores: probabilities or similarities."""
    return InstanceMap(scores, scores[:, label] - scores.mean(axis=1))


def attention_scores(attention: Float32[np.ndarray, " n"]) -> InstanceMap:
    """Return the attention map; tiles above the mean weight count as showing the slide's class."""
    return InstanceMap(None, attention)


def map_agreement(truth: SlideTruth, scores: InstanceMap) -> MapAgreement:
    """Measure the agreement of a map with the mask."""
    if scores.classes is None:
        pair = np.stack([np.full(len(scores.values), scores.values.mean()), scores.values], axis=1)
        mapped = class_map(truth.grid, pair, truth.cell)
    else:
        mapped = class_map(truth.grid, scores.classes, truth.cell) == truth.label
    return score_map(mapped.astype(np.int64), truth.truth, 2)


def reference_maps(truth: SlideTruth) -> Iterator[tuple[str, MapAgreement]]:
    """Measure the floor (all tiles show the class) and the ceiling (majority class per tile)."""
    yield FLOOR, score_map(np.ones_like(truth.truth), truth.truth, 2)
    majority = majority_tiles(truth.grid, truth.truth, 2, truth.cell)
    yield CEILING, score_map(np.abs(class_map(truth.grid, majority, truth.cell)), truth.truth, 2)


def tile_auroc(truth: SlideTruth, scores: InstanceMap) -> float | None:
    """Compute the AUROC of the class against all others over tiles; None if only one of the two occurs."""
    from sklearn.metrics import roc_auc_score

    if truth.tiles.min() == truth.tiles.max():
        return None
    return float(roc_auc_score(truth.tiles, scores.values))


@dataclass(frozen=True)
class SlideScore:
    """Agreement of one map of one slide with its mask.

    Attributes:
        patient: Patient of the slide; "" where unknown.
        arm: Arm; "" for floor and ceiling.
        seed: Seed for training; None for floor and ceiling.
        auroc: AUROC of the slide's tiles; None where it is undefined.
    """

    slide: str
    patient: str
    arm: str
    kind: str
    seed: int | None
    agreement: MapAgreement
    auroc: float | None


def score_slide(
    truth: SlideTruth, maps: Mapping[tuple[str, str, int], InstanceMap], slide: str, patient: str
) -> list[SlideScore]:
    """Score one slide's maps, one per arm, kind and seed, and compute the slide's floor and ceiling."""
    scores = [
        SlideScore(slide, patient, arm, kind, seed, map_agreement(truth, scored), tile_auroc(truth, scored))
        for (arm, kind, seed), scored in maps.items()
    ]
    references = reference_maps(truth)
    return scores + [SlideScore(slide, patient, "", name, None, agreement, None) for name, agreement in references]


def score_table(scores: Sequence[SlideScore], resamples: int = 0) -> pd.DataFrame:
    """Score maps over all slides: Dice of the pooled pixels, and mean AUROC of the tiles.

    Args:
        resamples: Number of bootstrap resamples of patients; 0 for no intervals.

    Returns:
        One row per arm, kind and seed, then floor and ceiling: arm, map, seed, slides, dice, auroc, auroc_slides
        (number of slides with a defined AUROC), and the 95% intervals over patients of the mean over seeds (dice_low,
        dice_high, auroc_low, auroc_high; `reason` where they are undefined, as for fewer than `MIN_UNITS` patients).
    """
    grouped: dict[tuple[str, str], dict[int | None, list[SlideScore]]] = {}
    for score in scores:
        grouped.setdefault((score.arm, score.kind), {}).setdefault(score.seed, []).append(score)
    rows: list[dict[str, object]] = []
    for (arm, kind), by_seed in sorted(grouped.items(), key=lambda item: not item[0][0]):  # floor and ceiling last
        bounds = _intervals(list(by_seed.values()), resamples)
        for seed, slides in by_seed.items():
            agreement = slides[0].agreement
            for other in slides[1:]:
                agreement = agreement.plus(other.agreement)
            aurocs = [each.auroc for each in slides if each.auroc is not None]
            auroc = float(np.mean(aurocs)) if aurocs else None
            values = (arm, kind, seed, len(slides), float(agreement.dice[1]), auroc, len(aurocs))
            rows.append(dict(zip(_COLUMNS, values, strict=False)) | bounds)
    return pd.DataFrame(rows, columns=_COLUMNS)


def slide_score_table(scores: Sequence[SlideScore]) -> pd.DataFrame:
    """Tabulate the scores of each slide: slide, patient, arm, map, seed, dice (nan if the class is absent), auroc."""
    rows = [
        (each.slide, each.patient, each.arm, each.kind, each.seed, float(each.agreement.dice[1]), each.auroc)
        for each in scores
    ]
    return pd.DataFrame(rows, columns=["slide", "patient", "arm", "map", "seed", "dice", "auroc"])


def _intervals(seeds: Sequence[Sequence[SlideScore]], resamples: int) -> dict[str, object]:
    """Compute intervals over patients for the scores of one arm and kind of map, averaged over seeds."""
    counts = np.array([[each.agreement.counts for each in slides] for slides in seeds], dtype=np.float64)
    right, total = counts[..., 1, 1], counts[..., 1, :].sum(axis=-1) + counts[..., 1].sum(axis=-1)
    aurocs = np.array([[np.nan if each.auroc is None else each.auroc for each in slides] for slides in seeds])
    known = np.isfinite(aurocs)

    def statistics(weights: Float[np.ndarray, "n r"]) -> dict[str, Float[np.ndarray, " r"]]:
        with np.errstate(invalid="ignore", divide="ignore"):
            dice = 2 * (right @ weights) / (total @ weights)
            auroc = (np.where(known, aurocs, 0.0) @ weights) / (known.astype(np.float64) @ weights)
        return {"dice": dice.mean(axis=0), "auroc": auroc.mean(axis=0)}

    patients = np.array([each.patient for each in seeds[0]], dtype=object)
    intervals = bootstrap(statistics, patients, resamples)
    bounds: dict[str, object] = {"reason": intervals["dice"].reason or intervals["auroc"].reason}
    for name, interval in intervals.items():
        bounds |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return bounds
