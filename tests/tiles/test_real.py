"""Real published tiles, read through the sources that a user would choose."""

from pathlib import Path

import numpy as np
import pytest
from labelled_tiles import load_tiles

from clipit.config.run import TilesConfig
from clipit.errors import DataError


def config(folder: Path, images: str, **more: object) -> TilesConfig:
    return TilesConfig.model_validate(
        {"source": "table", "path": str(folder / "labels.csv"), "images": str(folder / images), **more}
    )


def test_colorectal_tiles_are_read_from_a_table(real_data: Path) -> None:
    tiles = load_tiles(config(real_data / "crc_polito5", "crc_polito5_tiles.zip"), seed=0)
    assert tiles.classes == ("AC", "H", "S", "T", "V")
    assert {split: sum(counts.values()) for split, counts in tiles.counts().items()} == {
        "train": 960,
        "validation": 240,
        "test": 400,
    }
    assert set(tiles.counts()["validation"].values()) == {48, 0}
    assert tiles.read(700).size == (224, 224)


def test_pcam_kaggle_names_its_validation_split_valid(real_data: Path) -> None:
    tiles = load_tiles(config(real_data / "pcam_kaggle", "pcam_tiles.zip", unreadable="quarantine"), seed=0)
    assert {split: sum(counts.values()) for split, counts in tiles.counts().items()} == {
        "train": 1200,
        "validation": 300,
        "test": 274,
    }
    assert tiles.quarantined == ()
    assert tiles.read(0).size == (96, 96)


def test_lc25000_groups_do_not_cross_splits(real_data: Path) -> None:
    tiles = load_tiles(config(real_data / "lc25000_colon", "lc25000_colon_tiles.zip"), seed=0)
    groups = {split: set(tiles.groups[tiles.splits == split]) for split in ("train", "validation", "test")}
    assert not groups["train"] & groups["validation"]
    assert not groups["train"] & groups["test"]
    assert not groups["validation"] & groups["test"]
    share = (tiles.splits == "validation").sum() / (tiles.splits != "test").sum()
    assert 0.15 < share < 0.25
    assert set(tiles.truth[tiles.splits == "validation"]) == {0, 1}


def test_kather_splits_have_other_names_and_unlabelled_tiles(real_data: Path) -> None:
    folder = real_data / "kather2016_sample"
    with pytest.raises(DataError, match="unknown split values: labelled, unlabelled"):
        load_tiles(config(folder, "kather2016_tiles.zip"), seed=0)
    splits = {"train": "labelled", "test": "unlabelled"}
    tiles = load_tiles(config(folder, "kather2016_tiles.zip", splits=splits), seed=0)
    assert len(tiles.classes) == 8
    assert (tiles.truth[tiles.splits == "test"] == -1).all()
    assert {tiles.read(index).mode for index in np.flatnonzero(tiles.splits == "test")} == {"RGB"}
