"""Test tiles gained or lost by an arm relative to the baseline, by majority vote over seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from clipit.comparison.report.comparison_tables import Setting, predictions_source, setting_label
from clipit.comparison.statistics import ArmKey, ArmResult
from clipit.errors import DataError, counted
from clipit.evaluation.predictions import Predictions, align_predictions, read_predictions
from clipit.reporting.html import Card, Cards, Folded, PageSection, Part, Text
from clipit.reporting.thumbnails import picture_uri
from clipit.tiles.tileset import TileSet

_MAX_ARMS = 3
_MAX_TILES = 12  # maximum number of tiles shown of each kind (gained, lost)
_SIDE, _QUALITY = 96, 70  # side in pixels and JPEG quality of the pictures
_MANY_SETTINGS = 4  # with more data sets and backbones, only `_FEW_TILES` of each kind are shown
_FEW_TILES = 4


@dataclass(frozen=True)
class ArmVotes:
    """Predictions of one arm for the labelled tiles, aggregated over seeds.

    Attributes:
        correct: Number of seeds in which each tile is classified correctly.
        voted: Class predicted by most seeds; ties go to the higher mean probability, then to the first class.
        probabilities: Mean class probabilities over seeds.
    """

    correct: Int[np.ndarray, " n"]
    voted: Int[np.ndarray, " n"]
    probabilities: Float[np.ndarray, "n c"]


@dataclass(frozen=True)
class ChangedTiles:
    """Tiles whose predictions change from the baseline to an arm.

    Attributes:
        tiles: The labelled tiles, sorted by id.
        gain: Mean probability of the true class, arm minus baseline.
        gained: Rows classified correctly by most seeds of the arm and wrongly by most seeds of the baseline; highest
            gain first, ties by id.
        lost: The reverse, lowest gain first.
    """

    tiles: Predictions
    base: ArmVotes
    arm: ArmVotes
    gain: Float[np.ndarray, " n"]
    gained: Int64[np.ndarray, " g"]
    lost: Int64[np.ndarray, " l"]


def tile_sections(
    results: Sequence[ArmResult], arms: Sequence[str], baseline: str, tiles: Mapping[Setting, TileSet]
) -> list[PageSection]:
    """Compose one section per data set and backbone: test tiles gained and lost by the first arms.

    Args:
        arms: Arms besides the baseline; the first ones are shown.
        baseline: Arm that the others are compared with.
        tiles: Tiles of each data set and backbone, for pictures; without them, cards have no picture.
    """
    tested = {result.key: result for result in results if result.key.test_set == "test" and not result.reference}
    settings = list(dict.fromkeys(key.setting for key in tested))
    max_tiles = _MAX_TILES if len(settings) <= _MANY_SETTINGS else _FEW_TILES
    sections = []
    for setting in settings:
        base = tested.get(ArmKey(*setting, "test", baseline))
        shown = [
            result for arm in arms[:_MAX_ARMS] if (result := tested.get(ArmKey(*setting, "test", arm))) is not None
        ]
        if base is None or not shown:
            continue
        picture = _load_pictures(tiles.get(setting))
        parts: list[Part] = [
            Text(
                f"Gained: most seeds of the arm classify the test tile correctly, and most seeds of {baseline} do not. "
                "Lost: the reverse. These are examples, selected by their labels, and some tiles change by chance "
                "between any two arms. Each card shows the true class with the change in its mean probability and, for "
                "each arm, the number of seeds that are correct, the class predicted by most seeds (ties go to the "
                "more probable class), and the mean probability of that class."
            )
        ]
        for result in shown:
            changes = find_changed_tiles(_read_seeds(base), _read_seeds(result))
            summary = f"{result.key.arm}: {len(changes.gained)} gained, {len(changes.lost)} lost"
            source = f"{predictions_source(base)}; {predictions_source(result)}"
            n = (len(base.rows), len(result.rows))
            parts.append(
                Folded(summary, change_parts(changes, (baseline, result.key.arm), n, picture, source, max_tiles))
            )
        sections.append(PageSection(f"Tiles gained and lost{setting_label(setting, settings)}", parts))
    return sections


def find_changed_tiles(base: Sequence[Predictions], arm: Sequence[Predictions]) -> ChangedTiles:
    """Compare two arms tile by tile.

    Args:
        base: Predictions of the baseline on one test set, one table per seed.
        arm: Predictions of the arm on the same test set.

    Raises:
        DataError: The tables differ in tiles, labels or classes, or no tile has a label.
    """
    tables = align_predictions([*base, *arm])
    tiles = tables[0]
    votes = [_count_votes(seeds, tiles) for seeds in (tables[: len(base)], tables[len(base) :])]
    rows = np.arange(len(tiles.ids))
    gain = np.subtract(*(arm_votes.probabilities[rows, tiles.labels] for arm_votes in reversed(votes)))
    order = gain.round(6)  # to the precision of float32 probabilities, so that ids, not noise, break ties
    mostly_correct = [2 * votes[i].correct > n for i, n in enumerate((len(base), len(arm)))]
    mostly_wrong = [2 * votes[i].correct < n for i, n in enumerate((len(base), len(arm)))]
    return ChangedTiles(
        tiles,
        votes[0],
        votes[1],
        gain,
        _select(mostly_correct[1] & mostly_wrong[0], -order, tiles),
        _select(mostly_correct[0] & mostly_wrong[1], order, tiles),
    )


def _count_votes(tables: Sequence[Predictions], tiles: Predictions) -> ArmVotes:
    probabilities = np.stack([table.probabilities.astype(np.float64) for table in tables])
    predicted = probabilities.argmax(axis=2)
    mean = probabilities.mean(axis=0)
    votes = (predicted[:, :, None] == np.arange(len(tiles.classes))).sum(axis=0)
    correct = (predicted == tiles.labels).sum(axis=0)
    # Half the mean probability is less than a vote, so it only breaks ties.
    return ArmVotes(correct, (votes + 0.5 * mean).argmax(axis=1), mean)


def _select(mask: Bool[np.ndarray, " n"], key: Float[np.ndarray, " n"], tiles: Predictions) -> Int64[np.ndarray, " k"]:
    """Return the rows within the mask, sorted by key and then by id."""
    order: Int64[np.ndarray, " n"] = np.lexsort((tiles.ids, key)).astype(np.int64)
    return np.asarray(order[mask[order]])


def change_parts(
    changes: ChangedTiles,
    names: tuple[str, str],
    seeds: tuple[int, int],
    picture: Callable[[str], str | None],
    source: str,
    max_tiles: int = _MAX_TILES,
) -> list[Part]:
    """Compose cards of the gained and the lost tiles.

    Args:
        changes: Gained and lost tiles.
        names: Names of the baseline and the arm.
        seeds: Numbers of seeds of the baseline and the arm.
        picture: Function from a tile id to the data URI of its picture, or None.
        source: Prediction files, for the caption.
        max_tiles: Maximum number of tiles of each kind.
    """
    base, arm = names
    parts: list[Part] = []
    for kind, rows, definition in (
        ("gained", changes.gained, f"{arm} correct, {base} wrong"),
        ("lost", changes.lost, f"{base} correct, {arm} wrong"),
    ):
        total = (
            f"{len(rows)} of {counted(len(changes.tiles.ids), 'labelled tile')} {kind} ({definition}, each in most "
            "seeds)"
        )
        if not len(rows):
            parts.append(Text(f"{total}."))
            continue
        caption = (
            f"{total}; showing {min(max_tiles, len(rows))}, ordered by the change in the true class's mean probability."
        )
        cards = [_tile_card(changes, int(row), names, seeds, picture) for row in rows[:max_tiles]]
        parts.append(Cards(cards, caption, source))
    return parts


def _tile_card(
    changes: ChangedTiles,
    row: int,
    names: tuple[str, str],
    seeds: tuple[int, int],
    picture: Callable[[str], str | None],
) -> Card:
    tiles = changes.tiles
    tile_id, true = str(tiles.ids[row]), tiles.classes[int(tiles.labels[row])]
    lines = [f"true: {true} ({changes.gain[row]:+.2f})"]
    for name, n, votes in zip(names, seeds, (changes.base, changes.arm), strict=True):
        voted = int(votes.voted[row])
        lines.append(f"{name} ({int(votes.correct[row])} of {n}):")
        lines.append(f"{tiles.classes[voted]} {votes.probabilities[row, voted]:.2f}")
    return Card(picture(tile_id), f"tile {tile_id}: true {true}", lines, f"id {tile_id}")


def _read_seeds(result: ArmResult) -> list[Predictions]:
    return [read_predictions(row.predictions_file(), row.predictions_sha256).select("test") for row in result.rows]


def _load_pictures(tiles: TileSet | None) -> Callable[[str], str | None]:
    """Return a function from a tile id to the data URI of its picture; None if the tile or image is missing."""
    rows = {} if tiles is None else {str(tile_id): row for row, tile_id in enumerate(tiles.ids.tolist())}

    @cache
    def picture(tile_id: str) -> str | None:
        if tiles is None or tile_id not in rows:
            return None
        try:
            return picture_uri(tiles, rows[tile_id], side=_SIDE, quality=_QUALITY)
        except DataError:  # a missing image must not prevent the page from being written
            return None

    return picture
