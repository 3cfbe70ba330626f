from collections.abc import Callable

import numpy as np
import pytest

from clipit.errors import DataError
from clipit.tiles.hold_out import hold_out_fold, hold_out_test, hold_out_validation
from clipit.tiles.splits import check_groups
from clipit.tiles.tileset import TileSet

Make = Callable[..., TileSet]


def test_the_held_out_split_is_stratified_and_exact_without_groups(make_tiles: Make) -> None:
    tiles = hold_out_validation(make_tiles([0] * 50 + [1] * 10 + [0] * 5, ["train"] * 60 + ["test"] * 5), 0.2, seed=0)
    assert tiles.counts()["validation"] == {"c0": 10, "c1": 2, "(no label)": 0}
    assert (tiles.splits == "test").sum() == 5


def test_the_held_out_split_takes_whole_groups_near_the_fraction(make_tiles: Make) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    groups = [f"p{code}" for code in rng.integers(0, 60, 600)]
    tiles = hold_out_validation(make_tiles(labels, ["train"] * 600, groups), 0.2, seed=1)
    check_groups(tiles)
    assert 0.15 < (tiles.splits == "validation").mean() < 0.25


def test_the_held_out_split_depends_on_names_and_seed_but_not_on_row_order(make_tiles: Make) -> None:
    tiles = make_tiles([0, 1] * 30, ["train"] * 60)
    by_seed = {seed: hold_out_validation(tiles, 0.2, seed) for seed in (0, 1)}
    held_out = {seed: set(t.ids[t.splits == "validation"]) for seed, t in by_seed.items()}
    assert held_out[0] != held_out[1]
    order = np.random.default_rng(3).permutation(60)
    shuffled = hold_out_validation(tiles.select(order), 0.2, 0)
    assert set(shuffled.ids[shuffled.splits == "validation"]) == held_out[0]


def test_unlabelled_tiles_move_with_their_group(make_tiles: Make) -> None:
    groups = [f"p{index // 4}" for index in range(80)]
    labels = [index % 2 if index % 4 < 2 else -1 for index in range(80)]
    tiles = hold_out_validation(make_tiles(labels, ["train"] * 80, groups), 0.25, seed=0)
    check_groups(tiles)
    assert (tiles.truth[tiles.splits == "validation"] >= 0).sum() == 10
    assert (tiles.splits == "validation").sum() == 20


def test_a_single_group_cannot_be_split(make_tiles: Make) -> None:
    with pytest.raises(DataError, match="the training split has 1 group for 10 tiles"):
        hold_out_validation(make_tiles([0, 1] * 5, ["train"] * 10, ["p"] * 10), 0.2, seed=0)


def test_the_only_group_of_a_class_stays_in_train(make_tiles: Make) -> None:
    tiles = make_tiles([0] * 6 + [1] * 6, ["train"] * 12, ["a"] * 6 + ["b"] * 6)
    for fraction in (0.2, 0.6):
        with pytest.raises(DataError, match=r"at most one for each class\n.*add tiles of other groups"):
            hold_out_validation(tiles, fraction, seed=0)
    two_groups = make_tiles([0] * 12 + [1] * 6, ["train"] * 18, ["a"] * 6 + ["b"] * 6 + ["c"] * 6)
    assert hold_out_validation(two_groups, 0.9, seed=0).counts()["train"] == {"c0": 6, "c1": 6, "(no label)": 0}


def test_a_fraction_that_whole_groups_cannot_reach_is_noted(make_tiles: Make) -> None:
    tiles = make_tiles([0, 1] * 8, ["train"] * 16, [f"p{index % 4}" for index in range(16)])
    assert hold_out_validation(tiles, 0.3, seed=0).notes[-1] == (
        "validation: 0.3 of the training tiles (actually 50%, because whole groups move), held out with seed 0"
    )


def test_a_test_split_is_held_out_by_group_and_does_not_depend_on_row_order(make_tiles: Make) -> None:
    groups = [f"p{index // 4}" for index in range(200)]
    tiles = make_tiles([index // 4 % 2 for index in range(200)], ["train"] * 200, groups)
    held_out = hold_out_test(tiles, 0.3, seed=0)
    check_groups(held_out)
    assert held_out.counts()["test"] == {"c0": 28, "c1": 28, "(no label)": 0}, "groups of four tiles stay together"
    shuffled = hold_out_test(tiles.select(np.random.default_rng(0).permutation(200)), 0.3, seed=0)
    assert set(shuffled.ids[shuffled.splits == "test"]) == set(held_out.ids[held_out.splits == "test"])


def folds_of(tiles: TileSet, count: int, seed: int = 0) -> list[set[str]]:
    cuts = [hold_out_fold(tiles, count, fold, seed) for fold in range(count)]
    for cut in cuts:
        check_groups(cut)
    return [set(cut.ids[cut.splits == "test"]) for cut in cuts]


def test_every_tile_is_tested_in_exactly_one_fold(make_tiles: Make) -> None:
    rng = np.random.default_rng(0)
    labels = [*rng.integers(0, 3, 500), *([-1] * 100)]
    tiles = make_tiles(labels, ["train"] * 600, [f"p{code}" for code in rng.integers(0, 80, 600)])
    folds = folds_of(tiles, 5)
    assert sum(map(len, folds)) == 600 and set.union(*folds) == set(tiles.ids)
    assert all(90 < len(fold) < 150 for fold in folds), "folds of whole groups have about the same size"


def test_folds_are_stratified_and_depend_on_names_and_seed_but_not_on_row_order(make_tiles: Make) -> None:
    tiles = make_tiles([0] * 50 + [1] * 10, ["train"] * 60)
    folds = folds_of(tiles, 5)
    counts = [hold_out_fold(tiles, 5, fold, 0).counts()["test"] for fold in range(5)]
    assert counts == [{"c0": 10, "c1": 2, "(no label)": 0}] * 5
    assert folds_of(tiles.select(np.random.default_rng(1).permutation(60)), 5) == folds
    assert folds_of(tiles, 5, seed=1) != folds


def test_folds_need_enough_groups_and_note_absent_classes(make_tiles: Make) -> None:
    with pytest.raises(DataError, match="5 folds need at least 5 groups; the training split has 4, with 8 tiles"):
        hold_out_fold(make_tiles([0, 1] * 4, ["train"] * 8, [f"p{index // 2}" for index in range(8)]), 5, 0, 0)
    notes = [hold_out_fold(make_tiles([0] * 9 + [1], ["train"] * 10), 3, fold, 0).notes for fold in range(3)]
    assert sum("no tile of c1 in this fold" in fold_notes for fold_notes in notes) == 2
    assert all("groups unknown" in fold_notes[0] for fold_notes in notes)
