"""Tiles that one arm gets right and another gets wrong, in most seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from clipit.evaluation.predictions import Predictions, align_predictions
from clipit.reporting.html import Card, Cards, Part, Text

MOST_TILES = 12
"""Tiles shown of each kind (gained, lost)."""


@dataclass(frozen=True)
class Answers:
    """What one arm says of the labelled tiles, over its seeds.

    Attributes:
        right: In how many seeds each tile is right.
        voted: Class that most seeds predict; of equals the one with the higher mean probability, then the first.
        probabilities: Mean over seeds.
    """

    right: Int[np.ndarray, " n"]
    voted: Int[np.ndarray, " n"]
    probabilities: Float[np.ndarray, "n c"]


@dataclass(frozen=True)
class Changes:
    """Tiles whose answers change from the baseline to an arm.

    Attributes:
        tiles: The labelled tiles, by id.
        base: The baseline's answers.
        arm: The arm's.
        gain: Mean probability of the true class by the arm less that by the baseline.
        gained: Rows that the arm gets right in most seeds and the baseline wrong in most, the highest gain first, ...
        lost: ... and the other way round, the lowest gain first; ties by id.
    """

    tiles: Predictions
    base: Answers
    arm: Answers
    gain: Float[np.ndarray, " n"]
    gained: Int64[np.ndarray, " g"]
    lost: Int64[np.ndarray, " l"]


def changed_tiles(base: Sequence[Predictions], arm: Sequence[Predictions]) -> Changes:
    """Compare two arms tile by tile.

    Args:
        base: The baseline's predictions of one test set, one table per seed.
        arm: The arm's.

    Raises:
        DataError: The tables are of different tiles, labels or classes, or no tile has a label.
    """
    tables = align_predictions([*base, *arm])
    tiles = tables[0]
    answers = [_answers(own, tiles) for own in (tables[: len(base)], tables[len(base) :])]
    rows = np.arange(len(tiles.ids))
    gain = np.subtract(*(answer.probabilities[rows, tiles.labels] for answer in reversed(answers)))
    order = gain.round(6)  # what float32 probabilities hold: ties are broken by id, not by noise
    well = [2 * answers[i].right > n for i, n in enumerate((len(base), len(arm)))]
    badly = [2 * answers[i].right < n for i, n in enumerate((len(base), len(arm)))]
    return Changes(
        tiles,
        answers[0],
        answers[1],
        gain,
        _ordered(well[1] & badly[0], -order, tiles),
        _ordered(well[0] & badly[1], order, tiles),
    )


def _answers(tables: Sequence[Predictions], tiles: Predictions) -> Answers:
    """One arm's answers over its seeds."""
    each = np.stack([table.probabilities.astype(np.float64) for table in tables])
    predicted = each.argmax(axis=2)
    mean = each.mean(axis=0)
    votes = (predicted[:, :, None] == np.arange(len(tiles.classes))).sum(axis=0)
    right = (predicted == tiles.labels).sum(axis=0)
    return Answers(right, (votes + 0.5 * mean).argmax(axis=1), mean)  # half a probability never outweighs a vote


def _ordered(kept: Bool[np.ndarray, " n"], key: Float[np.ndarray, " n"], tiles: Predictions) -> Int64[np.ndarray, " k"]:
    """Rows that are kept, by the key, then by id."""
    order: Int64[np.ndarray, " n"] = np.lexsort((tiles.ids, key)).astype(np.int64)
    return np.asarray(order[kept[order]])


def change_parts(
    changes: Changes,
    names: tuple[str, str],
    seeds: tuple[int, int],
    picture: Callable[[str], str | None],
    source: str,
    most: int = MOST_TILES,
) -> list[Part]:
    """The tiles of either kind, as cards.

    Args:
        changes: Of `changed_tiles`.
        names: Of the baseline and of the arm.
        seeds: How many of each there are.
        picture: Tile id -> data URI of its picture, or None.
        source: Files that the predictions come from.
        most: Tiles shown of each kind.
    """
    base, arm = names
    parts: list[Part] = []
    for kind, rows, how in (
        ("gained", changes.gained, f"{arm} right, {base} wrong"),
        ("lost", changes.lost, f"{base} right, {arm} wrong"),
    ):
        total = f"{len(rows)} of {len(changes.tiles.ids)} labelled tiles {kind} ({how}, each in most seeds)"
        if not len(rows):
            parts.append(Text(f"{total}."))
            continue
        caption = f"{total}; the first {min(most, len(rows))} by the change of the true class's mean probability."
        cards = [_card(changes, int(row), names, seeds, picture) for row in rows[:most]]
        parts.append(Cards(cards, caption, source))
    return parts


def _card(
    changes: Changes,
    row: int,
    names: tuple[str, str],
    seeds: tuple[int, int],
    picture: Callable[[str], str | None],
) -> Card:
    """A tile, its label, and what both arms say of it."""
    tiles = changes.tiles
    tile_id, true = str(tiles.ids[row]), tiles.classes[int(tiles.labels[row])]
    lines = [f"true: {true} ({changes.gain[row]:+.2f})"]
    for name, n, answers in zip(names, seeds, (changes.base, changes.arm), strict=True):
        voted = int(answers.voted[row])
        lines.append(f"{name} ({int(answers.right[row])} of {n}):")
        lines.append(f"{tiles.classes[voted]} {answers.probabilities[row, voted]:.2f}")
    return Card(picture(tile_id), f"tile {tile_id}: true {true}", lines, f"id {tile_id}")
