"""Tests of the tiles gained and lost between two arms, against a brute-force search."""

import numpy as np
import pytest

from clipit.comparison.report.changed_tiles import change_parts, find_changed_tiles
from clipit.errors import DataError
from clipit.evaluation.predictions import Predictions, softmax
from clipit.reporting.html import Cards, Text

CLASSES = ("adipose", "stroma", "tumour")


def predictions_by_seed(n_seeds: int, seed: int, n: int = 80, ties: bool = False) -> list[Predictions]:
    """Predictions of the same tiles by several seeds of an arm, each in a different order."""
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
def test_gained_and_lost_tiles_match_a_brute_force_search(n_seeds: int, ties: bool) -> None:
    base, arm = (predictions_by_seed(n_seeds, seed, n=300, ties=ties) for seed in (1, 2))
    changed = find_changed_tiles(base, arm)
    gains: dict[str, float] = {}
    gained, lost = [], []
    for tile_id in sorted(base[0].ids.tolist()):
        probabilities = {"base": [], "arm": []}
        label = -1
        for name, tables in (("base", base), ("arm", arm)):
            for table in tables:
                row = table.ids.tolist().index(tile_id)
                label = int(table.labels[row])
                probabilities[name].append(table.probabilities[row].astype(float))
        if label < 0:
            continue
        right = {
            name: sum(int(p.argmax()) == label for p in of_arm) / n_seeds for name, of_arm in probabilities.items()
        }
        gains[tile_id] = (
            sum(p[label] for p in probabilities["arm"]) / n_seeds
            - sum(p[label] for p in probabilities["base"]) / n_seeds
        )
        if right["arm"] > 0.5 and right["base"] < 0.5:
            gained.append(tile_id)
        if right["base"] > 0.5 and right["arm"] < 0.5:
            lost.append(tile_id)
    ids = changed.tiles.ids
    assert gained and lost
    assert ids[changed.gained].tolist() == sorted(gained, key=lambda i: (-round(gains[i], 6), i))
    assert ids[changed.lost].tolist() == sorted(lost, key=lambda i: (round(gains[i], 6), i))
    assert changed.gain == pytest.approx([gains[i] for i in ids.tolist()])
    for rows, answers in ((changed.gained, changed.arm), (changed.lost, changed.base)):
        assert (answers.voted[rows] == changed.tiles.labels[rows]).all(), "a minority of seeds predicts the true class"


def test_cards_show_label_predictions_and_probabilities() -> None:
    changed = find_changed_tiles(predictions_by_seed(3, 1), predictions_by_seed(3, 2))
    requested: list[str] = []
    parts = change_parts(
        changed, ("image_only", "text"), (3, 3), lambda i: requested.append(i), "x.parquet", max_tiles=2
    )
    gained, lost = parts
    assert isinstance(gained, Cards) and isinstance(lost, Cards)
    assert len(gained.cards) == len(lost.cards) == 2 and gained.source == "x.parquet"
    assert requested == changed.tiles.ids[[*changed.gained[:2], *changed.lost[:2]]].tolist()
    first, row = gained.cards[0], int(changed.gained[0])
    true = CLASSES[int(changed.tiles.labels[row])]
    assert (
        first.lines[0] == f"true: {true} ({changed.gain[row]:+.2f})" and first.trace == f"id {changed.tiles.ids[row]}"
    )
    assert first.lines[3].startswith("text (") and first.lines[4].startswith(f"{true} 0.")
    assert f"{len(changed.gained)} of {len(changed.tiles.ids)} labelled tiles gained" in gained.caption


def test_unchanged_predictions_give_empty_lists() -> None:
    same = predictions_by_seed(3, 1)
    parts = change_parts(find_changed_tiles(same, same), ("a", "b"), (3, 3), lambda i: None, "")
    assert [part.text[:4] for part in parts if isinstance(part, Text)] == ["0 of", "0 of"]


def test_predictions_of_different_tiles_raise_an_error() -> None:
    base, other = predictions_by_seed(2, 1), predictions_by_seed(2, 2, n=79)
    with pytest.raises(DataError, match="cover different tiles"):
        find_changed_tiles(base, other)
    with pytest.raises(DataError, match="no predictions"):
        find_changed_tiles([], [])
