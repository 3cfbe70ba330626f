from collections.abc import Callable
from dataclasses import replace

from clipit.config.run import LabelsConfig, TilesConfig
from clipit.tiles.overview import tiles_overview
from clipit.tiles.tileset import TileSet

Make = Callable[..., TileSet]
TABLE = TilesConfig(source="table", path="t.csv")


def test_a_complete_set_is_described_in_a_line_per_split(make_tiles: Make) -> None:
    splits, groups = ["train"] * 4 + ["validation"] * 2 + ["test"] * 2, list("aabbccdd")
    told = tiles_overview(make_tiles([0, 1, 0, -1, 0, 1, 0, 1], splits, groups), TABLE).splitlines()
    assert told == [
        "tiles: table t.csv",
        "  8 tiles, 2 classes: c0 4, c1 3",
        "  train            4 tiles, 3 labelled, 1 not, 2 patients or slides",
        "  validation       2 tiles, all labelled, 1 patient or slide",
        "  test             2 tiles, all labelled, 1 patient or slide",
    ]


def test_a_single_class_is_counted_in_the_singular(make_tiles: Make) -> None:
    tiles = replace(make_tiles([0, 0], ["train", "test"]), classes=("c0",))
    assert "  2 tiles, 1 class: c0 2\n  train            1 tile, all labelled, " in tiles_overview(tiles, TABLE)
    assert "2 tiles, 1 class, fingerprint" in tiles.describe()


def test_what_is_missing_is_said_with_its_consequence_and_key(make_tiles: Make) -> None:
    tiles = make_tiles([0, 0, 0, 1], ["train"] * 3 + ["validation"])
    told = tiles_overview(replace(tiles, advice="set --tiles.columns.group=case", notes=("cut", "WARNING: odd")), TABLE)
    assert "problem: no test split, so no test score: hold one out with tiles.test_fraction or tiles.folds" in told
    assert "problem: no labelled train tiles of c1, so they cannot be learnt" in told
    assert "problem: no groups, so tiles of one patient or slide may be in two splits" in told
    assert "which makes scores too high: set --tiles.columns.group=case\n" in told
    assert told.endswith("  note: cut\n  WARNING: odd")
    part = tiles_overview(make_tiles([-1, 0, 0], ["test", "test", "test"], ["", "p", "p"]), TABLE)
    assert "no train split, so nothing can" in part and "1 patient or slide, unknown for 1 tile" in part
    assert "problem: no group for 1 tile" in part


def test_many_classes_are_folded_and_the_limit_of_labels_is_named(make_tiles: Make) -> None:
    tiles = make_tiles(list(range(30)), ["train"] * 30)
    few = TABLE.model_copy(update={"labels": LabelsConfig(kind="per_class", value=5)})
    told = tiles_overview(tiles, few, "shifted test set b")
    assert told.startswith("shifted test set b: table") and "c9 1 and 20 more" in told and "c10" not in told
    assert "labels used: 5 of each class, drawn for each seed" in told
    assert "labels used" not in tiles_overview(tiles, TABLE)
    none = tiles_overview(tiles, TABLE.model_copy(update={"labels": LabelsConfig(kind="none")}))
    assert "labels used: none (tiles.labels.kind: none)" in none


def test_a_further_test_set_lacks_no_other_parts(make_tiles: Make) -> None:
    told = tiles_overview(make_tiles([0, 0, 1], ["test"] * 3), TABLE, "new set b", tests_only=True)
    assert told.startswith("new set b: table") and "no train split" not in told and "no validation split" not in told
    assert "problem: no groups, so patients or slides are not compared with those of the training" in told


def test_tcga_barcodes_in_ids_count_as_patients(make_tiles: Make) -> None:
    tiles = make_tiles([0, 1], ["train", "test"])
    tiles.ids[:] = ["TCGA-A6-2671-01_1", "TCGA-A6-2672-01_1"]
    assert "1 patient or slide" in (told := tiles_overview(tiles, TABLE)) and "no groups" not in told
