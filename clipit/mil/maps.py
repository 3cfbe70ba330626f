"""Maps of bags: instance logits and attention, the most attended tiles, and scores against masks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int64

from clipit.config.data import SlidesConfig, TilesConfig
from clipit.config.mil import MilConfig
from clipit.errors import ConfigError, DataError, counted, shortlist
from clipit.evaluation.predictions import softmax
from clipit.input_files.nearby_files import similar_names
from clipit.mil.inputs import ZERO_SHOT, MilInputs
from clipit.mil.map_scores import (
    InstanceMap,
    SlideScore,
    SlideTruth,
    attention_scores,
    check_values,
    class_scores,
    read_truth,
    score_slide,
    score_table,
    slide_score_table,
)
from clipit.mil.mil_arms import ARMS
from clipit.mil.mil_bags import MilBags
from clipit.mil.train_network import MilModel
from clipit.reporting.heat_maps import write_map, write_overlays
from clipit.reporting.html import Card
from clipit.reporting.mil_page import ShownBag
from clipit.reporting.thumbnails import picture_uri
from clipit.slides.grid import SlideGrid, parse_tile_id
from clipit.slides.prepare import PreparedSlide, prepare_slides
from clipit.slides.whole import read_whole
from clipit.tiles.slide_source import list_slides
from clipit.tiles.tileset import TileSet

_TOP_TILES = 8
_PICTURE = 96  # edge length of a tile on the page in pixels
_OVERVIEW = 700  # longest edge of a map in pixels
_MAX_SLIDES = 2  # maximum number of mapped slides per patient
_INSTANCE, _ATTENTION = "instance logits", "attention"


@dataclass(frozen=True)
class MilMaps:
    """Maps of the study.

    Attributes:
        scores: Table of `map_scores.score_table`; empty without masks.
        slides: Table of `map_scores.slide_score_table`; empty without masks.
        notes: Remarks on slides without a usable mask.
    """

    shown: Sequence[ShownBag]
    scores: pd.DataFrame
    slides: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _SlideRows:
    """Instances of a bag on one slide."""

    slide: PreparedSlide
    rows: Int64[np.ndarray, " n"]
    grid: SlideGrid


@dataclass(frozen=True)
class MaskedSlides:
    """Masks of the test slides.

    Attributes:
        notes: Remarks on slides without a usable mask.
    """

    truths: Mapping[str, SlideTruth]
    notes: tuple[str, ...] = ()


def check_mask_settings(mil: MilConfig, tiles: TilesConfig) -> None:
    """Check that there are slides and a mask folder, if maps are compared with masks.

    Raises:
        ConfigError: Masks are configured without slides, or the folder does not exist.
    """
    if mil.masks is None:
        return
    if mil.features == "h5" or tiles.source != "slides":
        raise ConfigError("only maps of slides can be compared with masks", where="mil.masks", fix="remove mil.masks")
    if not Path(mil.masks).is_dir():
        raise ConfigError(
            f"the mask folder {mil.masks} does not exist",
            where="mil.masks",
            fix=f"set it to the folder that contains <slide>.png; {similar_names(str(mil.masks))}",
        )


def read_masks(bags: MilBags, tiles: TilesConfig, mil: MilConfig) -> MaskedSlides:
    """Read the masks of the slides of all labelled test bags.

    Args:
        tiles: Section `tiles`, which lists the slides.

    Raises:
        ConfigError: `mil.mask_values` names a class that no bag can have.
        DataError: A mask cannot be used, or the masks of a class's slides contain no pixel of that class.
    """
    if mil.masks is None:
        return MaskedSlides({})
    unknown = sorted(mil.mask_values.keys() - {*bags.classes})
    if unknown:
        raise ConfigError(
            f"labels that no bag has: {shortlist(unknown)}; the labels are {shortlist(bags.classes)}",
            where="mil.mask_values",
            fix="use the class names of the slide labels; omit mask values that belong to no class",
        )
    test_bags, slides = _test_bags(bags), _Slides(tiles)
    truths: dict[str, SlideTruth] = {}
    missing: list[str] = []
    for bag, label in enumerate(test_bags.labels.tolist()):
        value = mil.mask_values.get(test_bags.classes[label])
        for on_slide in slides.of_bag(test_bags.ids(bag)):
            path = Path(mil.masks) / f"{on_slide.slide.name}.png"
            if value is None or not path.is_file():
                missing.append(on_slide.slide.name)
            else:
                truths[on_slide.slide.name] = read_truth(path, on_slide.grid, label, value)
    notes = check_values(truths, bags.classes, Path(mil.masks))
    if not missing:
        return MaskedSlides(truths, tuple(notes))
    dropped = f"The map scores exclude {counted(len(missing), 'test slide')} without a mask for the slide's class: "
    all_missing = "No test slide has both a mask and a label in mil.mask_values, so no map is scored: "
    return MaskedSlides(truths, (*notes, (dropped if truths else all_missing) + shortlist(missing)))


def make_maps(
    inputs: MilInputs,
    models: Mapping[str, Mapping[int, MilModel]],
    tiles: TilesConfig,
    mil: MilConfig,
    masked: MaskedSlides,
    folder: Path,
) -> MilMaps:
    """Write the maps of some test bags to `maps/`, and score the maps of all test slides with a mask.

    Args:
        inputs: Bags, with their tiles and zero-shot scores.
        models: Trained models by arm and seed.
        tiles: Section `tiles`, which lists the slides.
        mil: Section `mil`: number of bags to show, masks and resamples.
    """
    on_slides = inputs.tiles is not None and tiles.source == "slides"
    test_bags = _test_bags(inputs.bags)
    slides = _Slides(tiles) if on_slides else None
    trained = {arm: by_seed for arm, by_seed in models.items() if not ARMS[arm].shuffled}
    shown = []
    if trained and mil.maps:
        arm = "attention" if "attention" in trained else next(iter(trained))
        model = next(iter(trained[arm].values()))
        for bag in _choose_bags(test_bags, mil.maps):
            shown.append(_describe_bag(test_bags, bag, model, arm, inputs.tiles, slides, folder / "maps"))
    if not masked.truths or slides is None:
        return MilMaps(shown, pd.DataFrame(), notes=masked.notes)
    scores = list(_score(inputs, test_bags, trained, slides, masked.truths))
    return MilMaps(shown, score_table(scores, mil.resamples), slide_score_table(scores), masked.notes)


def _test_bags(bags: MilBags) -> MilBags:
    return bags.select((bags.splits == "test") & (bags.labels >= 0))


class _Slides:
    """Slides of a configuration, prepared on first use."""

    def __init__(self, tiles: TilesConfig) -> None:
        self._paths = {slide.name: slide for slide in list_slides(tiles).slides}
        self._config = tiles.slides or SlidesConfig()
        self._prepared: dict[str, PreparedSlide] = {}

    def of_bag(self, ids: Sequence[str]) -> Iterator[_SlideRows]:
        """Yield the instances on each slide of a bag, in the order of the slide's grid."""
        names = np.array([parse_tile_id(name)[0] for name in ids])
        for name in dict.fromkeys(names.tolist()):
            slide = self._prepare(name)
            grid = slide.grid
            row_of = {tile: index for index, tile in enumerate(grid.ids)}
            inside = [row for row in np.flatnonzero(names == name).tolist() if ids[row] in row_of]
            rows = np.array(sorted(inside, key=lambda row: row_of[ids[row]]), dtype=np.int64)
            kept = np.array([row_of[ids[row]] for row in rows.tolist()], dtype=np.int64)
            columns = {column: getattr(grid, column)[kept] for column in ("x", "y", "tissue")}
            yield _SlideRows(slide, rows, replace(grid, **columns))

    def _prepare(self, name: str) -> PreparedSlide:
        if name not in self._prepared:
            result = prepare_slides([self._paths[name]], self._config)[0]
            if not isinstance(result, PreparedSlide):
                raise DataError(f"{name} cannot be mapped: {result.reason}", where=result.path, fix=result.fix or "")
            self._prepared[name] = result
        return self._prepared[name]


def _choose_bags(bags: MilBags, count: int) -> list[int]:
    """Choose bags from each class in turn, in the order of their names."""
    queues = [sorted(np.flatnonzero(bags.labels == code).tolist(), key=lambda bag: str(bags.names[bag])) for code in
              range(len(bags.classes))]  # fmt: skip
    in_turn = [queue[turn] for turn in range(count) for queue in queues if turn < len(queue)]
    return in_turn[:count]


def _describe_bag(
    bags: MilBags, bag: int, model: MilModel, arm: str, tiles: TileSet | None, slides: _Slides | None, folder: Path
) -> ShownBag:
    """Write the maps of one bag, and collect its most attended tiles."""
    output = model.explain(bags.features(bag))
    instances = softmax(output.instance_logits.float().cpu().numpy())
    attention = output.attention.float().cpu().numpy()
    bag_scores = softmax(output.logits.float().cpu().numpy()[None])[0]
    ids, name = bags.ids(bag), str(bags.names[bag])
    pictures: list[tuple[str, bytes]] = []
    if slides is not None:
        for on_slide in list(slides.of_bag(ids))[:_MAX_SLIDES]:
            pictures += _write_slide_maps(
                on_slide, instances[on_slide.rows], attention[on_slide.rows], bags.classes, folder
            )
    top = np.argsort(-attention, kind="stable")[:_TOP_TILES].tolist()
    best = instances.argmax(axis=1)
    cards = []
    for row in top:
        lines = [
            f"attention {attention[row] * len(attention):.2g} x the mean",
            f"{bags.classes[best[row]]} {instances[row, best[row]]:.2f}",
        ]
        cards.append(Card(_picture(tiles, ids[row]), f"tile {ids[row]}", lines, ids[row]))
    return ShownBag(
        name=name,
        label=bags.classes[int(bags.labels[bag])],
        arm=arm,
        scores={each: float(score) for each, score in zip(bags.classes, bag_scores, strict=True)},
        tiles=len(ids),
        pictures=pictures,
        top=cards,
    )


def _picture(tiles: TileSet | None, name: str) -> str | None:
    return None if tiles is None else picture_uri(tiles, int(np.flatnonzero(tiles.ids == name)[0]), side=_PICTURE)


def _write_slide_maps(
    on_slide: _SlideRows,
    instances: Float32[np.ndarray, "n c"],
    attention: Float32[np.ndarray, " n"],
    classes: Sequence[str],
    folder: Path,
) -> list[tuple[str, bytes]]:
    """Write the overlays of one slide; return the pictures of instance logits and of attention."""
    overview, directory = read_whole(on_slide.slide, _OVERVIEW), folder / on_slide.slide.name
    best = write_overlays(directory, overview, on_slide.grid, classes, instances)[""]
    weights = directory / "attention.png"
    relative = attention / attention.max()
    write_map(
        weights, overview, on_slide.grid, relative, f"{on_slide.slide.name}: attention", "attention / highest attention"
    )
    return [
        (f"{on_slide.slide.name}: class with the highest instance logit", best.read_bytes()),
        (f"{on_slide.slide.name}: attention, relative to the highest", weights.read_bytes()),
    ]


def _score(
    inputs: MilInputs,
    test_bags: MilBags,
    models: Mapping[str, Mapping[int, MilModel]],
    slides: _Slides,
    truths: Mapping[str, SlideTruth],
) -> Iterator[SlideScore]:
    """Score the maps of all slides that have a mask, with the maps of one bag in memory at a time."""
    for bag, label in enumerate(test_bags.labels.tolist()):
        masked = [on_slide for on_slide in slides.of_bag(test_bags.ids(bag)) if on_slide.slide.name in truths]
        outputs = _instance_maps(inputs, test_bags, bag, models, label) if masked else {}
        for on_slide in masked:
            name = on_slide.slide.name
            maps = {key: scores.of_tiles(on_slide.rows) for key, scores in outputs.items()}
            yield from score_slide(truths[name], maps, name, str(test_bags.known_patients[bag]))


def _instance_maps(
    inputs: MilInputs, test_bags: MilBags, bag: int, models: Mapping[str, Mapping[int, MilModel]], label: int
) -> dict[tuple[str, str, int], InstanceMap]:
    """Compute the maps of one bag for every arm and seed."""
    features, maps = test_bags.features(bag), {}
    for arm, by_seed in models.items():
        for seed, model in by_seed.items():
            output = model.explain(features)
            instances = softmax(output.instance_logits.float().cpu().numpy())
            maps[arm, _INSTANCE, seed] = class_scores(instances, label)
            if model.options.pooling == "attention":
                maps[arm, _ATTENTION, seed] = attention_scores(output.attention.float().cpu().numpy())
    if inputs.zero_shot is not None:
        row = int(np.flatnonzero(inputs.zero_shot.bags.names == test_bags.names[bag])[0])
        maps[ZERO_SHOT, "cosines", 0] = class_scores(inputs.zero_shot.scores(row), label)
    return maps
