"""PCAM, NCT-CRC and BACH in their published layouts, with few and small images."""

import pickle
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest
from labelled_tiles import load_tiles
from PIL import Image

from clipit.config.run import TilesConfig
from clipit.errors import DataError
from clipit.tiles import bach, nct_crc, pcam
from clipit.tiles.datasets import DATASETS
from clipit.tiles.tileset import TileSet

from .conftest import paint


def config(source: str, path: Path, **more: object) -> TilesConfig:
    return TilesConfig.model_validate({"source": source, "path": str(path), **more})


@pytest.fixture
def pcam_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pcam, "COUNTS", {"train": 12, "valid": 4, "test": 6})
    rng = np.random.default_rng(0)
    for part, count in pcam.COUNTS.items():
        stem = tmp_path / "pcam" / f"camelyonpatch_level_2_split_{part}"
        stem.parent.mkdir(exist_ok=True)
        with h5py.File(f"{stem}_x.h5", "w") as file:
            file.create_dataset(
                "x", data=rng.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8), chunks=(4, 96, 96, 3)
            )
        with h5py.File(f"{stem}_y.h5", "w") as file:
            file.create_dataset("y", data=(np.arange(count) % 2).astype(np.uint8).reshape(-1, 1, 1, 1))
    return tmp_path


def _read_bytes(tiles: TileSet, index: int) -> bytes:
    return tiles.read(index).tobytes()


def test_pcam_has_the_official_splits(pcam_folder: Path) -> None:
    tiles = load_tiles(config("pcam", pcam_folder), seed=0)
    assert tiles.classes == ("no_tumor", "tumor")
    assert Counter(tiles.splits.tolist()) == {"train": 12, "validation": 4, "test": 6}
    assert (tiles.mpp == 0.97).all()
    test = tiles.of_split("test")
    assert test.ids[3] == "test/000003"
    assert test.truth.tolist() == [0, 1, 0, 1, 0, 1]
    with h5py.File(pcam_folder / "pcam" / "camelyonpatch_level_2_split_test_x.h5") as file:
        assert test.read(3).tobytes() == file["x"][3].tobytes()


def test_pcam_is_read_in_spawned_and_forked_processes(pcam_folder: Path) -> None:
    tiles = load_tiles(config("pcam", pcam_folder), seed=0)
    expected = _read_bytes(tiles, 15)  # opens the file before the other process starts
    for method in ("spawn", "fork"):
        with get_context(method).Pool(1) as pool:
            assert pool.apply(_read_bytes, (tiles, 15)) == expected
    assert _read_bytes(pickle.loads(pickle.dumps(tiles)), 15) == expected


def test_pcam_splits_can_be_mapped(pcam_folder: Path) -> None:
    tiles = load_tiles(config("pcam", pcam_folder, splits={"test": "valid"}, validation_fraction=0.5), seed=0)
    assert Counter(tiles.splits.tolist()) == {"train": 6, "validation": 6, "test": 4}
    assert all(name.startswith("valid/") for name in tiles.of_split("test").ids)
    with pytest.raises(DataError, match="no split val"):
        load_tiles(config("pcam", pcam_folder, splits={"test": "val"}), seed=0)


def test_pcam_errors_state_what_is_expected(pcam_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"(?s)nowhere.*zenodo.org/records/2546921.*CC0"):
        load_tiles(config("pcam", pcam_folder / "nowhere"), seed=0)
    x_file = pcam_folder / "pcam" / "camelyonpatch_level_2_split_valid_x.h5"
    content = x_file.read_bytes()
    x_file.write_bytes(content[:1000])
    with pytest.raises(DataError, match="not readable as PatchCamelyon"):
        load_tiles(config("pcam", pcam_folder), seed=0)
    x_file.rename(x_file.with_name(x_file.name + ".gz"))
    with pytest.raises(DataError, match=r"(?s)valid_x.h5 is missing.*gunzip"):
        load_tiles(config("pcam", pcam_folder), seed=0)
    x_file.write_bytes(content)
    monkeypatch.setitem(pcam.COUNTS, "test", 7)
    with pytest.raises(DataError, match=r"expected 7 tiles of 96 x 96 x 3 uint8, found uint8 \[6, 96, 96, 3\]"):
        load_tiles(config("pcam", pcam_folder), seed=0)


def test_published_counts_add_up() -> None:
    assert pcam.COUNTS == {"train": 262_144, "valid": 32_768, "test": 32_768}
    for folder, total in (("NCT-CRC-HE-100K", 100_000), ("CRC-VAL-HE-7K", 7_180)):
        assert sum(count for (name, _), count in nct_crc.COUNTS.items() if name == folder) == total


@pytest.fixture
def nct_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    counts = {(folder, name): 5 if folder.startswith("NCT") else 2 for folder, name in nct_crc.COUNTS}
    monkeypatch.setattr(nct_crc, "COUNTS", counts)
    for (folder, name), count in counts.items():
        for index in range(count):
            paint(tmp_path / folder / name / f"{name}-{index}.tif", index)
    return tmp_path


def test_nct_crc_tests_on_the_7k_and_holds_out_validation_from_the_100k(nct_folder: Path) -> None:
    tiles = load_tiles(config("nct_crc", nct_folder), seed=0)
    assert tiles.classes == DATASETS["nct_crc"].classes
    assert Counter(tiles.splits.tolist()) == {"train": 36, "validation": 9, "test": 18}
    assert all(name.startswith("CRC-VAL-HE-7K/") for name in tiles.of_split("test").ids)
    assert all(name.startswith("NCT-CRC-HE-100K/") for name in tiles.of_split("validation").ids)
    assert set(tiles.of_split("validation").truth) == set(range(9))
    assert any("one patient may be on both sides" in note for note in tiles.notes)
    assert (tiles.mpp == 0.5).all()


def test_nct_crc_errors_name_missing_folders_and_counts(nct_folder: Path) -> None:
    (nct_folder / "NCT-CRC-HE-100K" / "TUM" / "TUM-0.tif").unlink()
    with pytest.raises(DataError, match=r"(?s)expected 5 .tif files, found 4.*TUM.*1214456.*CC BY 4.0"):
        load_tiles(config("nct_crc", nct_folder), seed=0)
    (nct_folder / "CRC-VAL-HE-7K" / "EXTRA").mkdir()
    (nct_folder / "NCT-CRC-HE-100K").rename(nct_folder / "NCT-CRC-HE-100K-NONORM")
    with pytest.raises(DataError, match=r"(?s)NCT-CRC-HE-100K is missing.*NONORM exists"):
        load_tiles(config("nct_crc", nct_folder), seed=0)
    (nct_folder / "NCT-CRC-HE-100K-NONORM").rename(nct_folder / "NCT-CRC-HE-100K")
    paint(nct_folder / "NCT-CRC-HE-100K" / "TUM" / "TUM-0.tif")
    with pytest.raises(DataError, match=r"expected the class folders ADI.*EXTRA"):
        load_tiles(config("nct_crc", nct_folder), seed=0)


def test_smaller_copies_are_read_if_counts_are_not_checked(
    nct_folder: Path, pcam_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nct_folder / "NCT-CRC-HE-100K" / "TUM" / "TUM-0.tif").unlink()
    tiles = load_tiles(config("nct_crc", nct_folder, check_counts=False), seed=0)
    assert len(tiles) == 62
    assert any("not as published: NCT-CRC-HE-100K/TUM 4 instead of 5" in note for note in tiles.notes)
    monkeypatch.setitem(pcam.COUNTS, "test", 7)
    tiles = load_tiles(config("pcam", pcam_folder, check_counts=False), seed=0)
    assert (tiles.splits == "test").sum() == 6
    assert any("test has 6 tiles instead of 7" in note for note in tiles.notes)


@pytest.fixture
def bach_folder(tmp_path: Path) -> Path:
    for row in bach.bach_splits():
        folder = tmp_path / "Photos" / row["class"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / row["file"]).write_bytes(b"not looked at")
    return tmp_path


def test_bach_splits_match_published_protocols() -> None:
    rows = bach.bach_splits()
    assert len({row["file"] for row in rows}) == 400
    counts = {
        split: Counter(row["class"] for row in rows if row["split"] == split)
        for split in ("train", "validation", "test")
    }
    assert [counts["train"][name] for name in DATASETS["bach"].classes] == [42, 60, 59, 57]
    assert [counts["validation"][name] for name in DATASETS["bach"].classes] == [10, 10, 10, 20]
    assert [counts["test"][name] for name in DATASETS["bach"].classes] == [48, 30, 31, 23]
    # eva sorts the micrographs by class and file name and reports scores on these ranges.
    reported = [
        index
        for first, last in ((41, 59), (60, 90), (139, 169), (240, 258), (260, 273), (345, 368))
        for index in range(first, last)
    ]
    ordered = sorted(rows, key=lambda row: (row["class"], row["file"]))
    assert [index for index, row in enumerate(ordered) if row["split"] == "test"] == reported


def test_bach_names_match_the_published_ones(real_data: Path) -> None:
    lines = (real_data / "prompts" / "kep_bach_test_filelist.csv").read_text().splitlines()[1:]
    published = {(line.split("\t")[0], line.split("\t")[-1]) for line in lines}
    assert len(published) == 399
    assert published < {(row["file"], row["class"]) for row in bach.bach_splits()}


def test_nct_crc_7k_counts_match_the_published_ones(real_data: Path) -> None:
    lines = (real_data / "prompts" / "kep_kather_test_filelist.csv").read_text().splitlines()[1:]
    counts = Counter(line.split(",")[2] for line in lines)
    assert {("CRC-VAL-HE-7K", name): count for name, count in counts.items()} == {
        key: count for key, count in nct_crc.COUNTS.items() if key[0] == "CRC-VAL-HE-7K"
    }


def test_bach_photos_and_crops(bach_folder: Path) -> None:
    whole = load_tiles(config("bach", bach_folder), seed=0)
    assert Counter(whole.splits.tolist()) == {"train": 218, "validation": 50, "test": 132}
    assert (whole.groups == whole.ids).all()
    photo = np.random.default_rng(0).integers(0, 256, (1536, 2048, 3), dtype=np.uint8)
    Image.fromarray(photo).save(bach_folder / "Photos" / "InSitu" / "is007.tif")
    crops = load_tiles(config("bach", bach_folder, photos="crops"), seed=0)
    assert len(crops) == 4800
    assert {name.rpartition("#")[2] for name in crops.ids} == {
        f"{row},{column}" for row in range(3) for column in range(4)
    }
    index = crops.ids.tolist().index("is007.tif#2,3")
    assert crops.groups[index] == "is007.tif"
    np.testing.assert_array_equal(np.asarray(crops.read(index)), photo[1024:1536, 1536:2048])
    assert pickle.loads(pickle.dumps(crops)).read(index).size == (512, 512)


def test_bach_photos_of_another_size_cannot_be_cropped(bach_folder: Path) -> None:
    paint(bach_folder / "Photos" / "InSitu" / "is007.tif", size=(1024, 768))
    crops = load_tiles(config("bach", bach_folder, photos="crops"), seed=0)
    with pytest.raises(DataError, match=r"1024 x 768 pixels; published micrographs have 2048 x 1536"):
        crops.read(crops.ids.tolist().index("is007.tif#2,3"))


def test_bach_errors_name_missing_and_unexpected_files(bach_folder: Path) -> None:
    (bach_folder / "Photos" / "Benign" / "b101.tif").write_bytes(b"")
    assert any("b101.tif" in note for note in load_tiles(config("bach", bach_folder), seed=0).notes)
    (bach_folder / "Photos" / "Benign" / "b010.tif").unlink()
    with pytest.raises(DataError, match=r"(?s)1 of 400 micrographs is missing: Benign/b010.tif.*3632035.*BY-NC-ND"):
        load_tiles(config("bach", bach_folder), seed=0)
    with pytest.raises(DataError, match="no folder with Benign, InSitu, Invasive, Normal"):
        load_tiles(config("bach", bach_folder / "elsewhere"), seed=0)


def test_the_error_for_a_smaller_pcam_names_the_key_that_allows_it(
    pcam_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pcam, "COUNTS", {"train": 13, "valid": 4, "test": 6})
    with pytest.raises(DataError, match=r"(?s)expected 13 tiles.*tiles.check_counts: false"):
        load_tiles(config("pcam", pcam_folder), seed=0)


def test_flat_sicapv2_notes_the_missing_test_split(tmp_path: Path) -> None:
    for name in ("NC", "G3", "G4", "G5"):
        (tmp_path / name).mkdir()
        for number in range(5):
            paint(tmp_path / name / f"s{number}_Block_Region_1.jpg")
    tiles = load_tiles(config("sicapv2", tmp_path), seed=0)
    assert not (tiles.splits == "test").any()
    assert any("no test split, so no test score" in note and "{train,test}" in note for note in tiles.notes)


@pytest.mark.parametrize("value", [0.7, float("nan"), 2])
def test_pcam_labels_other_than_0_and_1_are_errors(pcam_folder: Path, value: float) -> None:
    file_name = pcam_folder / "pcam" / "camelyonpatch_level_2_split_valid_y.h5"
    with h5py.File(file_name, "w") as file:
        file["y"] = np.asarray([0, 1, value, 0]).reshape(4, 1, 1, 1)
    with pytest.raises(DataError, match=r"(?s)expected 4 labels of 0 or 1, found other values: .*where: .*valid_y"):
        load_tiles(config("pcam", pcam_folder), seed=0)


def test_errors_for_damaged_pcam_files_name_them(pcam_folder: Path) -> None:
    file_name = pcam_folder / "pcam" / "camelyonpatch_level_2_split_valid_x.h5"
    content = file_name.read_bytes()
    tiles = None
    for seed in range(40):
        random = np.random.default_rng(seed)
        data = np.frombuffer(content, dtype=np.uint8).copy()
        data[random.integers(0, min(len(data), 2000), 8)] = random.integers(0, 256, 8)
        file_name.write_bytes(data.tobytes())
        try:
            tiles = load_tiles(config("pcam", pcam_folder), seed=0)
            tiles.try_read(tiles.ids.tolist().index("valid/000001"))
        except DataError as error:
            assert "split_valid_" in str(error)
    del tiles  # the reader keeps the file open
    with h5py.File(pcam_folder / "x.h5", "w") as file:
        file.create_group("x")
    (pcam_folder / "x.h5").replace(file_name)
    with pytest.raises(DataError, match="valid_x"):
        load_tiles(config("pcam", pcam_folder), seed=0)
    file_name.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(DataError, match=r"(?s)Git LFS pointer.*valid_x\.h5.*run git lfs pull"):
        load_tiles(config("pcam", pcam_folder), seed=0)


def test_pcam_is_read_through_links(pcam_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pcam").symlink_to(pcam_folder / "pcam")
    assert len(load_tiles(config("pcam", tmp_path / "data"), seed=0)) == 22
    target = pcam_folder / "pcam" / "camelyonpatch_level_2_split_test_x.h5"
    target.rename(tmp_path / "moved.h5")
    target.symlink_to(tmp_path / "elsewhere.h5")
    with pytest.raises(DataError, match=r"test_x\.h5 is a link whose target does not exist"):
        load_tiles(config("pcam", tmp_path / "data"), seed=0)
