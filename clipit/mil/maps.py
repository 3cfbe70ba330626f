"""Maps of bags: instance logits with attention beside them, the most attended tiles, and scores against masks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int64

from clipit.config.data import SlidesConfig, TilesConfig
from clipit.config.mil import MilConfig
from clipit.errors import ConfigError, DataError, shortlist
from clipit.evaluation.predictions import softmax
from clipit.mil.arms import ARMS
from clipit.mil.bags import MilBags
from clipit.mil.inputs import ZERO_SHOT, MilInputs
from clipit.mil.map_scores import InstanceMap, SlideTruth, attention_scores, class_scores, read_truth, score_table
from clipit.mil.training import MilModel
from clipit.reporting.heat_maps import write_map, write_overlays
from clipit.reporting.html import Card
from clipit.reporting.mil_page import ShownBag
from clipit.reporting.thumbnails import jpeg_uri, thumbnail
from clipit.slides.grid import SlideGrid, parse_tile_id
from clipit.slides.prepare import PreparedSlide, prepare_slides
from clipit.slides.whole import read_whole
from clipit.tiles.slides import list_slides
from clipit.tiles.tileset import TileSet

_TOP_TILES = 8
_PICTURE = 96  # pixels of a tile on the page
_OVERVIEW = 700  # longest edge of a map in pixels
_MOST_SLIDES = 2  # mapped slides of a patient
_INSTANCE, _ATTENTION = "instance logits", "attention"


@dataclass(frozen=True)
class MapsOptions:
    """What is mapped.

    Attributes:
        shown: Number of test bags on the page.
        masks: Folder of masks; None for none.
        values: Class -> value of its pixels in the masks.
    """

    shown: int
    masks: Path | None
    values: Mapping[str, int]

    @classmethod
    def of(cls, mil: MilConfig) -> "MapsOptions":
        """Return the options of a configuration."""
        return cls(mil.maps, None if mil.masks is None else Path(mil.masks), mil.mask_values)


@dataclass(frozen=True)
class MilMaps:
    """Maps of the study.

    Attributes:
        shown: Bags of the page.
        scores: Table of `map_scores.score_table`; empty without masks.
        notes: Remarks on slides without a usable mask.
    """

    shown: Sequence[ShownBag]
    scores: pd.DataFrame
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _SlideRows:
    """The instances of a bag that lie on one slide."""

    slide: PreparedSlide
    rows: Int64[np.ndarray, " n"]
    grid: SlideGrid


def make_maps(
    inputs: MilInputs,
    models: Mapping[str, Mapping[int, MilModel]],
    tiles: TilesConfig,
    options: MapsOptions,
    folder: Path,
) -> MilMaps:
    """Write the maps of some test bags to `maps/`, and score the maps of all test bags that have a mask.

    Args:
        inputs: Bags, with their tiles and zero-shot scores.
        models: Trained models by arm and seed.
        tiles: Section `tiles`, which lists the slides.
        options: What is mapped.
        folder: Output folder of the study.

    Raises:
        ConfigError: There are masks, but no slides.
        DataError: A mask cannot be used, or no test bag has one.
    """
    on_slides = inputs.tiles is not None and tiles.source == "slides"
    if options.masks is not None and not on_slides:
        raise ConfigError("only maps of slides can be compared with masks", where="mil.masks", fix="remove mil.masks")
    tests = inputs.bags.select((inputs.bags.splits == "test") & (inputs.bags.labels >= 0))
    places = _Slides(tiles) if on_slides else None
    trained = {arm: by_seed for arm, by_seed in models.items() if not ARMS[arm].shuffled}
    shown = []
    if trained and options.shown:
        arm = "attention" if "attention" in trained else next(iter(trained))
        model = next(iter(trained[arm].values()))
        for bag in _choose(tests, options.shown):
            shown.append(_show(tests, bag, model, arm, inputs.tiles, places, folder / "maps"))
    if options.masks is None or places is None:
        return MilMaps(shown, pd.DataFrame())
    table, notes = _score(inputs, tests, trained, places, options)
    return MilMaps(shown, table, notes)


class _Slides:
    """The slides of a configuration, prepared when they are first needed."""

    def __init__(self, tiles: TilesConfig) -> None:
        self._paths = {slide.name: slide for slide in list_slides(tiles).slides}
        self._config = tiles.slides or SlidesConfig()
        self._prepared: dict[str, PreparedSlide] = {}

    def of_bag(self, ids: Sequence[str]) -> Iterator[_SlideRows]:
        """Return the instances on each slide of a bag, in the order of the slide's grid."""
        names = np.array([parse_tile_id(name)[0] for name in ids])
        for name in dict.fromkeys(names.tolist()):
            slide = self._prepare(name)
            place_of = {tile: place for place, tile in enumerate(slide.grid.ids)}
            inside = [row for row in np.flatnonzero(names == name).tolist() if ids[row] in place_of]
            rows = np.array(sorted(inside, key=lambda row: place_of[ids[row]]), dtype=np.int64)
            kept = np.array([place_of[ids[row]] for row in rows.tolist()], dtype=np.int64)
            columns = {column: getattr(slide.grid, column)[kept] for column in ("x", "y", "tissue")}
            yield _SlideRows(slide, rows, replace(slide.grid, **columns))

    def _prepare(self, name: str) -> PreparedSlide:
        if name not in self._prepared:
            result = prepare_slides([self._paths[name]], self._config)[0]
            if not isinstance(result, PreparedSlide):
                raise DataError(f"{name} cannot be mapped: {result.reason}", where=result.path, fix=result.fix or "")
            self._prepared[name] = result
        return self._prepared[name]


def _choose(bags: MilBags, count: int) -> list[int]:
    """Choose bags of all classes in turn, by name."""
    queues = [sorted(np.flatnonzero(bags.labels == code).tolist(), key=lambda bag: str(bags.names[bag])) for code in
              range(len(bags.classes))]  # fmt: skip
    turns = [queue[turn] for turn in range(count) for queue in queues if turn < len(queue)]
    return turns[:count]


def _show(
    bags: MilBags, bag: int, model: MilModel, arm: str, tiles: TileSet | None, places: _Slides | None, folder: Path
) -> ShownBag:
    """Write the maps of one bag, and collect its most attended tiles."""
    output = model.explain(bags.features(bag))
    instances = softmax(output.instance_logits.float().cpu().numpy())
    attention = output.attention.float().cpu().numpy()
    bag_scores = softmax(output.logits.float().cpu().numpy()[None])[0]
    ids, name = bags.ids(bag), str(bags.names[bag])
    pictures: list[tuple[str, bytes]] = []
    if places is not None:
        for part in list(places.of_bag(ids))[:_MOST_SLIDES]:
            pictures += _draw(part, instances[part.rows], attention[part.rows], bags.classes, folder)
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
    if tiles is None:
        return None
    encoded = thumbnail(tiles, int(np.flatnonzero(tiles.ids == name)[0]), side=_PICTURE)
    return None if encoded is None else jpeg_uri(encoded)


def _draw(
    part: _SlideRows,
    instances: Float32[np.ndarray, "n c"],
    attention: Float32[np.ndarray, " n"],
    classes: Sequence[str],
    folder: Path,
) -> list[tuple[str, bytes]]:
    """Write the overlays of one slide; return the picture of instance logits and that of attention."""
    overview, place = read_whole(part.slide, _OVERVIEW), folder / part.slide.name
    best = write_overlays(place, overview, part.grid, classes, instances)[""]
    weights = place / "attention.png"
    relative = attention / attention.max()
    write_map(weights, overview, part.grid, relative, f"{part.slide.name}: attention", "attention / highest attention")
    return [
        (f"{part.slide.name}: class with the highest instance logit", best.read_bytes()),
        (f"{part.slide.name}: attention, relative to the highest", weights.read_bytes()),
    ]


def _score(
    inputs: MilInputs,
    tests: MilBags,
    models: Mapping[str, Mapping[int, MilModel]],
    places: _Slides,
    options: MapsOptions,
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Score the maps of all slides that have a mask and a label with a value in the masks."""
    masks = options.masks or Path()
    truths: dict[str, SlideTruth] = {}
    maps: dict[tuple[str, str, int], dict[str, InstanceMap]] = {}
    missing: list[str] = []
    for bag, label in enumerate(tests.labels.tolist()):
        value = options.values.get(tests.classes[label])
        parts = list(places.of_bag(tests.ids(bag)))
        found = [part for part in parts if value is not None and (masks / f"{part.slide.name}.png").is_file()]
        missing += [part.slide.name for part in parts if part not in found]
        if value is None or not found:
            continue
        outputs = _instance_maps(inputs, tests, bag, models, label)
        for part in found:
            name = part.slide.name
            truths[name] = read_truth(masks / f"{name}.png", part.grid, label, value)
            for key, scores in outputs.items():
                of_class = None if scores.classes is None else scores.classes[part.rows]
                maps.setdefault(key, {})[name] = InstanceMap(of_class, scores.values[part.rows])
    if not truths:
        raise DataError(
            "no test slide has a mask and a label with a value in mil.mask_values",
            where=masks,
            fix="name masks after the slides (<slide>.png), and the value of each class in mil.mask_values",
        )
    listed = shortlist(missing)
    notes = (f"{len(missing)} test slides without a mask of their class are not in the scores of maps: {listed}",)
    return score_table(truths, maps), notes if missing else ()


def _instance_maps(
    inputs: MilInputs, tests: MilBags, bag: int, models: Mapping[str, Mapping[int, MilModel]], label: int
) -> dict[tuple[str, str, int], InstanceMap]:
    """Compute the maps of one bag by every arm and seed."""
    features, maps = tests.features(bag), {}
    for arm, by_seed in models.items():
        for seed, model in by_seed.items():
            output = model.explain(features)
            instances = softmax(output.instance_logits.float().cpu().numpy())
            maps[arm, _INSTANCE, seed] = class_scores(instances, label)
            if model.options.pooling == "attention":
                maps[arm, _ATTENTION, seed] = attention_scores(output.attention.float().cpu().numpy())
    if inputs.zero_shot is not None:
        row = int(np.flatnonzero(inputs.zero_shot.bags.names == tests.names[bag])[0])
        maps[ZERO_SHOT, "cosines", 0] = class_scores(inputs.zero_shot.scores(row), label)
    return maps
