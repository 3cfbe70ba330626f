from collections.abc import Callable

import numpy as np
import pytest

from clipit.errors import DataError
from clipit.tiles.cuts import cut_validation
from clipit.tiles.splits import check_groups
from clipit.tiles.tileset import TileSet

Make = Callable[..., TileSet]


def test_the_cut_is_stratified_and_exact_without_groups(make_tiles: Make) -> None:
    tiles = cut_validation(make_tiles([0] * 50 + [1] * 10 + [0] * 5, ["train"] * 60 + ["test"] * 5), 0.2, seed=0)
    assert tiles.counts()["validation"] == {"c0": 10, "c1": 2, "(no label)": 0}
    assert (tiles.splits == "test").sum() == 5


def test_the_cut_takes_whole_groups_near_the_fraction(make_tiles: Make) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    groups = [f"p{code}" for code in rng.integers(0, 60, 600)]
    tiles = cut_validation(make_tiles(labels, ["train"] * 600, groups), 0.2, seed=1)
    check_groups(tiles)
    assert 0.15 < (tiles.splits == "validation").mean() < 0.25


def test_the_cut_depends_on_names_and_seed_not_on_row_order(make_tiles: Make) -> None:
    tiles = make_tiles([0, 1] * 30, ["train"] * 60)
    cut = {seed: cut_validation(tiles, 0.2, seed) for seed in (0, 1)}
    moved = {seed: set(t.ids[t.splits == "validation"]) for seed, t in cut.items()}
    assert moved[0] != moved[1]
    order = np.random.default_rng(3).permutation(60)
    mixed = cut_validation(tiles.select(order), 0.2, 0)
    assert set(mixed.ids[mixed.splits == "validation"]) == moved[0]


def test_unlabelled_tiles_of_a_moved_group_move_with_it(make_tiles: Make) -> None:
    groups = [f"p{place // 4}" for place in range(80)]
    labels = [place % 2 if place % 4 < 2 else -1 for place in range(80)]
    tiles = cut_validation(make_tiles(labels, ["train"] * 80, groups), 0.25, seed=0)
    check_groups(tiles)
    assert (tiles.truth[tiles.splits == "validation"] >= 0).sum() == 10
    assert (tiles.splits == "validation").sum() == 20


def test_one_group_cannot_be_cut(make_tiles: Make) -> None:
    with pytest.raises(DataError, match="train has 1 groups for 10 tiles"):
        cut_validation(make_tiles([0, 1] * 5, ["train"] * 10, ["p"] * 10), 0.2, seed=0)


def test_a_group_in_two_splits_is_listed(make_tiles: Make) -> None:
    tiles = make_tiles([0, 1, 0, 1], ["train", "test", "train", "test"], ["a", "a", "b", ""])
    with pytest.raises(DataError, match=r"1 groups .*: a \(test, train\)"):
        check_groups(tiles)
    check_groups(make_tiles([0, 1, 0, 1], ["train", "test", "train", "test"], ["", "", "b", "c"]))
