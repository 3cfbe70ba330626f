from dataclasses import replace
from pathlib import Path

import pytest

from clipit.config.run import TilesConfig
from clipit.errors import DataError
from clipit.tiles.groups import add_groups, group_advice
from clipit.tiles.load_tiles import read_tiles
from clipit.tiles.source import SourceTiles

from .conftest import NoReader, paint, write_table


def source(ids: list[str], **more: object) -> SourceTiles:
    empty = [""] * len(ids)
    tiles = SourceTiles(ids, empty, empty, empty, [float("nan")] * len(ids), empty, NoReader(), "here")
    return replace(tiles, **more)  # type: ignore[arg-type]


def test_a_pattern_finds_the_groups_in_ids_or_paths() -> None:
    tiles = source(["patient_1_a", "patient_1_b", "x"], paths=["a/1.png", "a/2.png", "patient_7/3.png"])
    assert add_groups(tiles, r"patient_\d+").groups == ["patient_1", "patient_1", "patient_7"]
    assert add_groups(tiles, r"patient_(\d+)").groups == ["1", "1", "7"]
    assert add_groups(tiles, None) is tiles


def test_tiles_without_a_match_are_noted_and_a_pattern_without_matches_is_an_error() -> None:
    tiles = source(["HE12_1", "HE12_2", "blank"])
    grouped = add_groups(tiles, r"HE\d+")
    assert grouped.groups == ["HE12", "HE12", ""]
    assert grouped.notes == ("1 tile without a group: tiles.group_pattern does not match blank",)
    with pytest.raises(DataError, match=r"matches no tile; tile ids: HE12_1"):
        add_groups(tiles, r"HE-\d+")
    with pytest.raises(DataError, match="already has groups"):
        add_groups(replace(tiles, groups=["a", "", ""]), r"HE\d+")


def test_a_pattern_that_matches_without_its_first_group_is_an_error() -> None:
    tiles = source(["north-12-a", "south-7-a", "south-7-b"])
    with pytest.raises(DataError, match=r"matches 2 tiles without its first capturing group.*: south-7-a"):
        add_groups(tiles, r"north-(\d+)|south-(\d+)")
    assert add_groups(tiles, r"((?:north|south)-\d+)-(\w)").groups == ["north-12", "south-7", "south-7"]
    assert add_groups(tiles, r"south-7(-a)?").groups == ["", "-a", ""]


def test_advice_names_the_best_column_and_its_key() -> None:
    columns = {"slide": ["s1", "s2", "s3", "s3"], "Patient ID": ["p1", "p1", "p2", "p2"]}
    advice = group_advice(source(["a", "b", "c", "d"], columns=columns))
    assert advice == (
        "the column Patient ID identifies 2 patients or slides, but is not used: set --tiles.columns.group='Patient ID'"
    )
    unique = {"case": ["1", "2", "3", "4"]}
    assert group_advice(source(["a", "b", "c", "d"], columns=unique)) == "", "no two tiles share a case"


@pytest.mark.parametrize(
    ("ids", "paths", "pattern"),
    [
        (["C3L-00001-21_0", "C3L-00001-21_1", "C3N-00002-22_0"], [], r"C3[LN]-\d{5}"),
        (["1", "2", "3"], ["patient_004_node_4/1.png", "patient_004_node_4/2.png", "patient_010/3.png"], "patient"),
        (["1", "2", "3"], ["TCGA-A6-2671/1.png", "TCGA-A6-2671/2.png", "TCGA-A6-2672/1.png"], "TCGA-"),
        (["train/slide12_0", "train/slide12_1", "train/slide13_1"], [], "slide"),
    ],
)
def test_advice_gives_a_working_pattern_for_barcodes(ids: list[str], paths: list[str], pattern: str) -> None:
    tiles = source(ids, paths=paths)
    advice = group_advice(tiles)
    key, _, suggested = advice.partition("--tiles.group_pattern=")
    assert key and pattern in suggested and "contain 2 " in advice
    assert len(set(add_groups(tiles, suggested.strip("'")).groups)) == 2
    assert group_advice(add_groups(tiles, suggested.strip("'"))) == ""


def test_no_advice_if_ids_are_unique_per_patient_or_contain_no_patient() -> None:
    assert group_advice(source(["TCGA-A6-2671-01_1", "TCGA-A6-2671-01_2", "TCGA-A6-2672-01_1"])) == ""
    assert group_advice(source(["image_0_label_0", "image_1_label_0", "colonca12"])) == ""


def test_advice_for_a_table_with_a_patient_column_but_no_groups(tmp_path: Path) -> None:
    for index in range(8):
        paint(tmp_path / f"{index}.png", index)
    rows = [{"path": f"{index}.png", "label": index % 2, "patient_id": f"p{index // 2}"} for index in range(8)]
    table = str(write_table(tmp_path / "t.csv", rows))
    ungrouped = read_tiles(TilesConfig(source="table", path=table))
    assert ungrouped.advice.endswith("set --tiles.columns.group=patient_id")
    grouped = read_tiles(TilesConfig(source="table", path=table, columns={"group": "patient_id"}))
    assert grouped.advice == "" and set(grouped.groups) == {"p0", "p1", "p2", "p3"}
