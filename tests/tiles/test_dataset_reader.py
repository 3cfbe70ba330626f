"""Published data sets, as small folders in their published layout."""

import csv
import dataclasses
import zipfile
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from labelled_tiles import load_tiles

from clipit.config.run import TilesConfig
from clipit.errors import ConfigError, DataError
from clipit.tiles.datasets import DATASETS
from clipit.tiles.load_tiles import read_tiles
from clipit.tiles.tileset import TileSet

from .conftest import paint, write_table


def config(source: str, path: Path, **more: object) -> TilesConfig:
    return TilesConfig.model_validate({"source": source, "path": str(path), **more})


def read(source: str, path: Path, **more: object) -> TileSet:
    return read_tiles(config(source, path, check_counts=False, **more))


def label_of(tiles: TileSet) -> dict[str, str]:
    return {name: tiles.classes[code] for name, code in zip(tiles.ids.tolist(), tiles.truth.tolist(), strict=True)}


def breakhis(root: Path) -> Path:
    """Write ten slides per class, two magnifications and three tiles each, in the layout of BreaKHis_v1.tar.gz."""
    base = root / "BreaKHis_v1" / "histology_slides" / "breast"
    kinds = (("benign", "adenosis", "SOB_B_A"), ("malignant", "ductal_carcinoma", "SOB_M_DC"))
    for kind, folder, code in kinds:
        for slide in range(10):
            name = f"14-{22549 + slide}AB"
            for power in (40, 400):
                for tile in range(3):
                    file = f"{code}-{name}-{power}-{tile + 1:03d}.png"
                    paint(base / kind / "SOB" / folder / f"{code}_{name.replace('-', '_')}" / f"{power}X" / file, tile)
    (base / "README.txt").write_text("no image")
    return root


def test_breakhis_slides_do_not_cross_splits(tmp_path: Path) -> None:
    tiles = read("breakhis", breakhis(tmp_path))
    assert tiles.classes == ("benign", "malignant")
    assert len(tiles) == 120
    assert set(tiles.groups) == {f"14-{22549 + slide}AB" for slide in range(10)}
    assert all(("/benign/" in name) == (label == "benign") for name, label in label_of(tiles).items())
    groups = [set(tiles.groups[tiles.splits == split]) for split in ("train", "validation", "test")]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    assert Counter(tiles.splits.tolist())["test"] == 36
    assert any("test: 0.3 of the training tiles, held out with seed 1" in note for note in tiles.notes)
    assert np.isnan(tiles.mpp).all()


def test_breakhis_magnification_and_types(tmp_path: Path) -> None:
    tiles = read("breakhis", breakhis(tmp_path), magnification="40X")
    assert len(tiles) == 60
    assert all("-40-" in name for name in tiles.ids)
    types = read("breakhis_types", tmp_path)
    assert types.classes == ("A", "F", "PT", "TA", "DC", "LC", "MC", "PC")
    assert set(label_of(types).values()) == {"A", "DC"}
    with pytest.raises(
        ConfigError, match=r"options that do not apply to tile source kather2016: tiles.magnification \(breakhis only\)"
    ):
        read("kather2016", tmp_path, magnification="40X")


def test_counts_that_differ_from_the_published_ones_are_errors(tmp_path: Path) -> None:
    breakhis(tmp_path)
    with pytest.raises(DataError, match=r"(?s)benign 30 instead of 625 \(short by 595\).*check_counts: false.*CC BY"):
        read_tiles(config("breakhis", tmp_path, magnification="40X"))
    assert any("benign 60 instead of 2480" in note for note in read("breakhis", tmp_path).notes)
    with pytest.raises(DataError, match="no tile of class F, no tile of class PT"):
        read_tiles(config("breakhis_types", tmp_path))
    with pytest.raises(ConfigError, match="check_counts"):
        read_tiles(config("folders", tmp_path, check_counts=False))


def test_the_published_counts_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = dataclasses.replace(DATASETS["breakhis"], counts=(("", "benign", 60), ("", "malignant", 60)))
    monkeypatch.setitem(DATASETS, "breakhis", row)
    tiles = read_tiles(config("breakhis", breakhis(tmp_path)))
    assert len(tiles) == 120
    assert not any("not as published" in note for note in tiles.notes)


def test_errors_for_wrong_folders_name_the_source_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)Kather 2016.* is missing.*zenodo.org/records/53169.*CC BY 4.0"):
        read("kather2016", tmp_path / "nowhere")
    paint(tmp_path / "a.png")
    with pytest.raises(
        DataError, match="none of the 1 image in this folder belongs to Kather 2016, colorectal textures"
    ):
        read("kather2016", tmp_path)


def test_kather2016_groups_by_slide(tmp_path: Path) -> None:
    names = (
        "10647_CRC-Prim-HE-10c.tif_Row_1_Col_1.tif",
        "1A11_CRC-Prim-HE-07_022.tif_Row_601_Col_151.tif",
        "17E8F_CRC-Prim-HE-02_007.tif_Row_151_Col_301.tif",
        "1DA3_CRC-Prim-HE-06_028.tif_Row_1_Col_151.tif",
    )
    for name in DATASETS["kather2016"].classes:
        for file in names:
            paint(tmp_path / "Kather_texture_2016_image_tiles_5000" / name / file)
    tiles = read("kather2016", tmp_path)
    assert tiles.classes[0] == "01_TUMOR" and len(tiles) == 32
    assert set(tiles.groups) == {f"CRC-Prim-HE-{number}" for number in ("02", "06", "07", "10")}
    assert (tiles.mpp == 0.495).all()
    assert set(tiles.splits) == {"train", "validation", "test"}


def test_lc25000_is_read_as_a_whole_or_by_organ(tmp_path: Path) -> None:
    for organ, names in (("lung", ("lung_aca", "lung_n", "lung_scc")), ("colon", ("colon_aca", "colon_n"))):
        for name in names:
            for index in range(10):
                file = f"{name.replace('_', '')}{index}.jpeg"
                paint(tmp_path / "lung_colon_image_set" / f"{organ}_image_sets" / name / file, index)
    assert read("lc25000", tmp_path).classes == ("colon_aca", "colon_n", "lung_aca", "lung_n", "lung_scc")
    lung = read("lc25000_lung", tmp_path)
    assert lung.classes == ("lung_aca", "lung_n", "lung_scc") and len(lung) == 30
    assert any("20 files do not belong to the data set" in note for note in lung.notes)
    assert any("augmented copies" in note for note in lung.notes)
    assert set(label_of(read("lc25000_colon", tmp_path)).values()) == {"colon_aca", "colon_n"}


def test_pannuke_in_the_layout_of_plip_or_in_folders(tmp_path: Path) -> None:
    for kind in ("benign", "malignant"):
        for index in range(10):
            paint(tmp_path / "plip" / "images" / f"adrenal gland_{kind}_{index:04d}.png", index)
            paint(tmp_path / "mine" / kind / f"{index}.png", index)
    for folder in ("plip", "mine"):
        tiles = read("pannuke", tmp_path / folder)
        assert Counter(label_of(tiles).values()) == {"benign": 10, "malignant": 10}
        assert Counter(tiles.splits.tolist())["test"] == 6
        assert all(label in name for name, label in label_of(tiles).items())


def test_digestpath_keeps_crops_of_an_image_in_one_split(tmp_path: Path) -> None:
    for kind in ("negative", "positive"):
        for source in range(6):
            for index in range(4):
                paint(tmp_path / "images" / kind / f"18-{kind[0]}{source}_downsample=2_{index:05d}.png", index)
    tiles = read("digestpath", tmp_path)
    assert tiles.classes == ("benign", "malignant")
    assert len(set(tiles.groups)) == 12
    assert not set(tiles.groups[tiles.splits == "test"]) & set(tiles.groups[tiles.splits != "test"])
    assert all(("positive" in name) == (label == "malignant") for name, label in label_of(tiles).items())


def test_wsss4luad_labels_follow_the_tumour_bit(tmp_path: Path) -> None:
    bits = ("[1, 0, 0]", "[1, 1, 0]", "[0, 1, 0]", "[0, 0, 1]")
    for slide in (436219, 1031280, 1040001, 1040002, 1040003, 1040004):
        for index, bit in enumerate(bits):
            paint(tmp_path / "1.training" / f"{slide}-{index}-57-{bit}.png", index)
    paint(tmp_path / "2.validation" / "img" / "00.png")
    tiles = read("wsss4luad", tmp_path)
    assert len(tiles) == 24 and len(set(tiles.groups)) == 6
    assert all((label == "tumor") == ("[1," in name) for name, label in label_of(tiles).items())


def kimia(root: Path, scans: int) -> Path:
    for scan in range(scans):
        paint(root / "Test-patches" / f"s{scan}" / "1.jpg", scan)
        for index in range(5):
            paint(root / "train" / f"s{scan}" / f"{index}.jpg", index)
    return root


def test_kimia_path24c_keeps_its_test_split(tmp_path: Path) -> None:
    tiles = read("kimia_path24c", kimia(tmp_path, 24))
    assert len(tiles.classes) == 24
    assert Counter(tiles.splits.tolist()) == {"train": 96, "validation": 24, "test": 24}
    assert all(name.startswith("Test-patches/") for name in tiles.of_split("test").ids)
    assert any("Test-patches 24 instead of 1325" in note for note in tiles.notes)


def test_kimia_path24c_with_a_renamed_training_folder_or_missing_scans(tmp_path: Path) -> None:
    kimia(tmp_path, 3)
    assert any("3 classes instead of 24" in note for note in read("kimia_path24c", tmp_path).notes)
    (tmp_path / "train").rename(tmp_path / "Big-scans")
    with pytest.raises(DataError, match=r"15 of \d+ tiles are outside the split folders.*"):
        read("kimia_path24c", tmp_path)
    assert len(read("kimia_path24c", tmp_path, splits={"train": "Big-scans"}).of_split("train")) > 0


def mhist(root: Path) -> Path:
    rows: list[dict[str, object]] = []
    for index in range(20):
        name = f"MHIST_a{chr(97 + index)}a.png"
        paint(root / "images" / name, index)
        votes = index % 8
        rows.append(
            {
                "Image Name": name,
                "Majority Vote Label": "SSA" if votes > 3 else "HP",
                "Number of Annotators who Selected SSA (Out of 7)": votes,
                "Partition": "test" if index < 5 else "train",
            }
        )
    write_table(root / "annotations.csv", rows)
    return root


def test_mhist_reads_its_annotations(tmp_path: Path) -> None:
    tiles = read("mhist", mhist(tmp_path))
    assert tiles.classes == ("HP", "SSA")
    assert (tiles.splits == "test").sum() == 5
    assert label_of(tiles)["MHIST_aea.png"] == "SSA"
    assert tiles.read(3).size == (8, 8)
    with pytest.raises(DataError, match="train 15 instead of 2175"):
        read_tiles(config("mhist", tmp_path))
    (tmp_path / "annotations.csv").unlink()
    with pytest.raises(DataError, match=r"(?s)annotations.csv is missing.*bmirds"):
        read("mhist", tmp_path)


def test_sicapv2_folders_follow_the_published_partition(tmp_path: Path) -> None:
    for part, slides in (("train", 8), ("test", 2)):
        for slide in range(slides):
            for name in ("NC", "G3", "G4", "G5"):
                file = f"{part}{slide}_Block_Region_1_0_{slide}_xini_6803_yini_59786.jpg"
                paint(tmp_path / part / name / file, slide)
    tiles = read_tiles(config("sicapv2", tmp_path))  # there are no published counts to check
    assert tiles.classes == ("NC", "G3", "G4", "G5")
    assert set(tiles.groups) == {f"train{n}" for n in range(8)} | {"test0", "test1"}
    assert (tiles.splits == "test").sum() == 8
    assert not any("test: 0.3" in note for note in tiles.notes)


def test_a_group_in_both_parts_of_a_published_split_is_an_error(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("NC", "G3", "G4", "G5"):
            paint(tmp_path / part / name / f"16B0001851_Block_Region_1_0_{name}_xini_1_yini_{len(part)}.jpg")
    with pytest.raises(DataError, match=r"16B0001851 \(test, train\)"):
        read_tiles(config("sicapv2", tmp_path))


def test_data_sets_are_looked_up_by_name(tmp_path: Path) -> None:
    assert DATASETS["mhist"].name == "mhist"
    with pytest.raises(DataError, match="MHIST is missing"):
        load_tiles(config("mhist", tmp_path / "no"), seed=0)


def _unzip(archive: Path, to: Path) -> Path:
    with zipfile.ZipFile(archive) as source:
        source.extractall(to)
    return to


def test_real_kather2016(real_data: Path, tmp_path: Path) -> None:
    _unzip(real_data / "kather2016_sample" / "kather2016_tiles.zip", tmp_path)
    tiles = read("kather2016", tmp_path)
    assert Counter(label_of(tiles).values()) == dict(
        zip(DATASETS["kather2016"].classes, (18, 8, 13, 12, 12, 10, 18, 9), strict=True)
    )
    assert any("30 files do not belong to the data set" in note for note in tiles.notes)
    assert tiles.read(0).size == (224, 224)
    with pytest.raises(DataError, match="01_TUMOR 18 instead of 625"):
        read_tiles(config("kather2016", tmp_path))


def test_real_lc25000_in_its_own_split(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "lc25000_colon"
    tiles = read("lc25000_colon", _unzip(folder / "lc25000_colon_tiles.zip", tmp_path))
    with (folder / "labels.csv").open(newline="") as stream:
        known = {row["path"]: row for row in csv.DictReader(stream)}
    assert {name: row["label"] for name, row in known.items()} == label_of(tiles)
    test = set(tiles.of_split("test").ids)
    assert test == {name for name, row in known.items() if row["split"] == "test"}


def test_a_smaller_copy_of_real_pcam_tiles(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "pcam_kaggle"
    table = {"source": "table", "path": str(folder / "labels.csv"), "images": str(folder / "pcam_tiles.zip")}
    tiles = read_tiles(TilesConfig.model_validate(table))
    for part, split in (("train", "train"), ("valid", "validation"), ("test", "test")):
        rows = np.flatnonzero(tiles.splits == split)[::60]
        stem = tmp_path / f"camelyonpatch_level_2_split_{part}"
        with h5py.File(f"{stem}_x.h5", "w") as file:
            file.create_dataset("x", data=np.stack([np.asarray(tiles.read(index)) for index in rows]))
        with h5py.File(f"{stem}_y.h5", "w") as file:
            file.create_dataset("y", data=tiles.truth[rows].astype(np.uint8).reshape(-1, 1, 1, 1))
    with pytest.raises(DataError, match="expected 262,144 tiles"):
        read_tiles(config("pcam", tmp_path))
    copy = read("pcam", tmp_path)
    first = int(np.flatnonzero(tiles.splits == "train")[0])
    assert np.array_equal(np.asarray(copy.read(0)), np.asarray(tiles.read(first)))
    assert any("train has 20 tiles instead of 262144" in note for note in copy.notes)
