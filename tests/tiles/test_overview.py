from collections.abc import Callable
from dataclasses import replace

from clipit.config.run import LabelsConfig, TilesConfig
from clipit.tiles.overview import tiles_overview
from clipit.tiles.tileset import TileSet

Make = Callable[..., TileSet]
TABLE = TilesConfig(source="table", path="t.csv")


def test_the_overview_has_one_line_per_split(make_tiles: Make) -> None:
    splits, groups = ["train"] * 4 + ["validation"] * 2 + ["test"] * 2, list("aabbccdd")
    lines = tiles_overview(make_tiles([0, 1, 0, -1, 0, 1, 0, 1], splits, groups), TABLE).splitlines()
    assert lines == [
        "tiles: table t.csv",
        "  8 tiles, 2 classes: c0 4, c1 3",
        "  train            4 tiles, 3 labelled, 1 not, 2 patients or slides",
        "  validation       2 tiles, all labelled, 1 patient or slide",
        "  test             2 tiles, all labelled, 1 patient or slide",
    ]


def test_a_single_class_is_written_in_the_singular(make_tiles: Make) -> None:
    tiles = replace(make_tiles([0, 0], ["train", "test"]), classes=("c0",))
    assert "  2 tiles, 1 class: c0 2\n  train            1 tile, all labelled, " in tiles_overview(tiles, TABLE)
    assert "2 tiles, 1 class, fingerprint" in tiles.describe()


def test_missing_parts_are_listed_with_their_consequence_and_key(make_tiles: Make) -> None:
    tiles = make_tiles([0, 0, 0, 1], ["train"] * 3 + ["validation"])
    overview = tiles_overview(
        replace(tiles, advice="set --tiles.columns.group=case", notes=("cut", "WARNING: odd")), TABLE
    )
    assert "problem: no test split, so no test score: hold one out with tiles.test_fraction or tiles.folds" in overview
    assert "problem: no labelled train tiles of c1, so they cannot be learnt" in overview
    assert "problem: no groups, so tiles of one patient or slide may be in two splits" in overview
    assert "which makes scores too high: set --tiles.columns.group=case\n" in overview
    assert overview.endswith("  note: cut\n  WARNING: odd")
    tests_overview = tiles_overview(make_tiles([-1, 0, 0], ["test", "test", "test"], ["", "p", "p"]), TABLE)
    assert (
        "no train split, so nothing can" in tests_overview
        and "1 patient or slide, unknown for 1 tile" in tests_overview
    )
    assert "problem: no group for 1 tile" in tests_overview


def test_long_class_lists_are_truncated_and_the_label_limit_is_named(make_tiles: Make) -> None:
    tiles = make_tiles(list(range(30)), ["train"] * 30)
    limited = TABLE.model_copy(update={"labels": LabelsConfig(kind="per_class", value=5)})
    overview = tiles_overview(tiles, limited, "shifted test set b")
    assert overview.startswith("shifted test set b: table") and "c9 1 and 20 more" in overview and "c10" not in overview
    assert "labels used: 5 of each class, drawn for each seed" in overview
    assert "labels used" not in tiles_overview(tiles, TABLE)
    unlabelled = tiles_overview(tiles, TABLE.model_copy(update={"labels": LabelsConfig(kind="none")}))
    assert "labels used: none (tiles.labels.kind: none)" in unlabelled


def test_an_additional_test_set_needs_no_other_splits(make_tiles: Make) -> None:
    overview = tiles_overview(make_tiles([0, 0, 1], ["test"] * 3), TABLE, "new set b", tests_only=True)
    assert (
        overview.startswith("new set b: table")
        and "no train split" not in overview
        and "no validation split" not in overview
    )
    assert "problem: no groups, so patients or slides are not compared with those of the training" in overview


def test_tcga_barcodes_in_ids_count_as_patients(make_tiles: Make) -> None:
    tiles = make_tiles([0, 1], ["train", "test"])
    tiles.ids[:] = ["TCGA-A6-2671-01_1", "TCGA-A6-2672-01_1"]
    assert "1 patient or slide" in (overview := tiles_overview(tiles, TABLE)) and "no groups" not in overview
