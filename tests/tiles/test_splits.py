from collections.abc import Callable

import pytest

from clipit.errors import ConfigError, DataError
from clipit.tiles.source import ALIASES
from clipit.tiles.splits import Configured, check_groups, resolve_splits
from clipit.tiles.tileset import TileSet

Make = Callable[..., TileSet]


def test_a_group_in_two_splits_is_an_error(make_tiles: Make) -> None:
    tiles = make_tiles([0, 1, 0, 1], ["train", "test", "train", "test"], ["a", "a", "b", ""])
    with pytest.raises(DataError, match=r"1 group .*: a \(test, train\)"):
        check_groups(tiles)
    check_groups(make_tiles([0, 1, 0, 1], ["train", "test", "train", "test"], ["", "", "b", "c"]))


def resolve(names: list[str], configured: Configured) -> list[str]:
    return resolve_splits(names, configured, ALIASES, "here")


def test_several_split_names_can_be_merged() -> None:
    names = ["labelled", "unlabelled", "hold-out", "labelled"]
    splits = resolve(names, {"train": ("labelled", "unlabelled"), "test": "hold-out"})
    assert splits == ["train", "train", "test", "train"]
    assert resolve(["train", "test"], {"train": ("train", "test")}) == ["train", "train"]
    assert resolve(["train", "val", "a"], {"test": ("a",)}) == ["train", "validation", "test"], (
        "unmapped splits keep their names"
    )


def test_rows_without_a_split_can_be_mapped() -> None:
    assert resolve(["train", "", "test"], {"train": ("train", "")}) == ["train", "train", "test"]
    assert resolve(["", ""], {"test": ""}) == ["test", "test"]
    with pytest.raises(DataError, match="1 of 2 rows has no split"):
        resolve(["train", ""], {})


def test_mapped_splits_must_exist_and_be_mapped_once() -> None:
    with pytest.raises(ConfigError, match="a name occurs twice"):
        resolve(["a", "b"], {"train": ("a", "b"), "test": "b"})
    with pytest.raises(DataError, match=r"names that do not occur: unlabeled; the source has: labelled, unlabelled"):
        resolve(["labelled", "unlabelled"], {"train": ("labelled", "unlabeled")})
    with pytest.raises(DataError, match=r'unknown split values: x(?s:.*)"train": \["labelled", "unlabelled"\]'):
        resolve(["train", "x"], {})
