"""Tiles gained and lost between two arms, against a slow search."""

import numpy as np
import pytest

from clipit.comparison.report.changed_tiles import change_parts, find_changed_tiles
from clipit.errors import DataError
from clipit.evaluation.predictions import Predictions, softmax
from clipit.reporting.html import Cards, Text

CLASSES = ("adipose", "stroma", "tumour")


def seeds_of(n_seeds: int, seed: int, n: int = 80, ties: bool = False) -> list[Predictions]:
    """Predictions of the same tiles by several seeds of an arm, each in an order of its own."""
    generator = np.random.default_rng(seed)
    ids = np.array([f"t{i:03d}" for i in range(n)])
    labels = np.random.default_rng(99).integers(-1, 3, n)
    tables = []
    for _ in range(n_seeds):
        logits = np.eye(3)[labels] * 0.8 + generator.normal(size=(n, 3))
        table = Predictions(
            ids, np.full(n, "test"), labels, np.full(n, ""), CLASSES, softmax(logits.round(0) if ties else logits)
        )
        tables.append(table.take(generator.permutation(n)))
    return tables


@pytest.mark.parametrize("n_seeds", [1, 2, 3, 5])
@pytest.mark.parametrize("ties", [False, True])
def test_gained_and_lost_are_those_of_a_slow_search(n_seeds: int, ties: bool) -> None:
    base, arm = (seeds_of(n_seeds, seed, n=300, ties=ties) for seed in (1, 2))
    found = find_changed_tiles(base, arm)
    gains: dict[str, float] = {}
    gained, lost = [], []
    for tile_id in sorted(base[0].ids.tolist()):
        own = {"base": [], "arm": []}
        label = -1
        for name, tables in (("base", base), ("arm", arm)):
            for table in tables:
                row = table.ids.tolist().index(tile_id)
                label = int(table.labels[row])
                own[name].append(table.probabilities[row].astype(float))
        if label < 0:
            continue
        right = {name: sum(int(p.argmax()) == label for p in of_arm) / n_seeds for name, of_arm in own.items()}
        gains[tile_id] = sum(p[label] for p in own["arm"]) / n_seeds - sum(p[label] for p in own["base"]) / n_seeds
        if right["arm"] > 0.5 and right["base"] < 0.5:
            gained.append(tile_id)
        if right["base"] > 0.5 and right["arm"] < 0.5:
            lost.append(tile_id)
    ids = found.tiles.ids
    assert gained and lost
    assert ids[found.gained].tolist() == sorted(gained, key=lambda i: (-round(gains[i], 6), i))
    assert ids[found.lost].tolist() == sorted(lost, key=lambda i: (round(gains[i], 6), i))
    assert found.gain == pytest.approx([gains[i] for i in ids.tolist()])
    for rows, answers in ((found.gained, found.arm), (found.lost, found.base)):
        assert (answers.voted[rows] == found.tiles.labels[rows]).all(), "most seeds predict the true class"


def test_cards_say_label_predictions_and_probabilities() -> None:
    found = find_changed_tiles(seeds_of(3, 1), seeds_of(3, 2))
    asked: list[str] = []
    parts = change_parts(found, ("image_only", "text"), (3, 3), lambda i: asked.append(i), "x.parquet", max_tiles=2)
    gained, lost = parts
    assert isinstance(gained, Cards) and isinstance(lost, Cards)
    assert len(gained.cards) == len(lost.cards) == 2 and gained.source == "x.parquet"
    assert asked == found.tiles.ids[[*found.gained[:2], *found.lost[:2]]].tolist()
    first, row = gained.cards[0], int(found.gained[0])
    true = CLASSES[int(found.tiles.labels[row])]
    assert first.lines[0] == f"true: {true} ({found.gain[row]:+.2f})" and first.trace == f"id {found.tiles.ids[row]}"
    assert first.lines[3].startswith("text (") and first.lines[4].startswith(f"{true} 0.")
    assert f"{len(found.gained)} of {len(found.tiles.ids)} labelled tiles gained" in gained.caption


def test_nothing_changed_is_said() -> None:
    same = seeds_of(3, 1)
    parts = change_parts(find_changed_tiles(same, same), ("a", "b"), (3, 3), lambda i: None, "")
    assert [part.text[:4] for part in parts if isinstance(part, Text)] == ["0 of", "0 of"]


def test_predictions_of_other_tiles_are_refused() -> None:
    base, other = seeds_of(2, 1), seeds_of(2, 2, n=79)
    with pytest.raises(DataError, match="cover different tiles"):
        find_changed_tiles(base, other)
    with pytest.raises(DataError, match="no predictions"):
        find_changed_tiles([], [])
