import io
import json
import os
import shutil
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelled_tiles import load_tiles
from PIL import Image

from clipit.config.run import LabelsConfig, TilesConfig
from clipit.errors import ConfigError, DataError
from clipit.tiles.load_tiles import read_tiles

from .conftest import paint


def config(path: Path, **more: object) -> TilesConfig:
    return TilesConfig.model_validate({"source": "folders", "path": str(path), **more})


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for split, count in (("train", 10), ("test", 3)):
        for code, name in enumerate(("stroma", "tumour")):
            for index in range(count):
                paint(tmp_path / split / name / f"{index}.png", 100 * code + index)
    return tmp_path


def test_splits_and_classes_come_from_the_folders(tree: Path) -> None:
    tiles = load_tiles(config(tree), seed=0)
    assert tiles.classes == ("stroma", "tumour")
    assert tiles.counts() == {
        "train": {"stroma": 8, "tumour": 8, "(no label)": 0},
        "validation": {"stroma": 2, "tumour": 2, "(no label)": 0},
        "test": {"stroma": 3, "tumour": 3, "(no label)": 0},
    }
    index = tiles.ids.tolist().index("test/tumour/2.png")
    assert tiles.read(index).size == (8, 8)
    assert tiles.read(index).mode == "RGB"
    assert "groups unknown" in tiles.describe()


def test_without_split_folders_all_tiles_are_training_and_nested_folders_belong_to_the_class(tmp_path: Path) -> None:
    for index in range(5):
        paint(tmp_path / "a" / "slide1" / f"{index}.jpg", index)
        paint(tmp_path / "b" / f"{index}.tif", index)
    tiles = load_tiles(config(tmp_path), seed=0)
    assert set(tiles.splits) == {"train", "validation"}
    assert "a/slide1/0.jpg" in tiles.ids
    assert tiles.truth[tiles.ids.tolist().index("a/slide1/0.jpg")] == 0


def test_split_names_are_mapped(tree: Path) -> None:
    (tree / "train").rename(tree / "fold1")
    with pytest.raises(DataError, match="unknown split values: fold1"):
        load_tiles(config(tree), seed=0)
    tiles = load_tiles(config(tree, splits={"train": "fold1"}), seed=0)
    assert (tiles.splits == "train").sum() == 16


def test_mapping_one_folder_to_two_splits_is_refused(tree: Path) -> None:
    with pytest.raises(ConfigError, match="same name"):
        load_tiles(config(tree, splits={"train": "train", "validation": "train"}), seed=0)


def test_a_configured_split_that_does_not_exist_is_an_error(tree: Path) -> None:
    with pytest.raises(DataError, match=r"do not occur: held_out; the source has: test, train"):
        load_tiles(config(tree, splits={"validation": "held_out"}), seed=0)


def test_unknown_and_missing_class_folders_are_errors(tree: Path) -> None:
    with pytest.raises(DataError, match=r"unknown class folders: tumour; no images for the classes: tumor"):
        load_tiles(config(tree, classes=("stroma", "tumor")), seed=0)


def test_class_order_follows_the_configuration(tree: Path) -> None:
    tiles = load_tiles(config(tree, classes=("tumour", "stroma")), seed=0)
    assert tiles.truth[tiles.ids.tolist().index("test/tumour/0.png")] == 0


def test_unlabelled_folder_has_no_labels_and_stays_in_train(tree: Path) -> None:
    for index in range(20):
        paint(tree / "train" / "unlabelled" / f"{index}.png", index)
    tiles = load_tiles(config(tree), seed=0)
    assert tiles.classes == ("stroma", "tumour")
    assert tiles.counts()["train"]["(no label)"] == 20
    assert tiles.counts()["validation"] == {"stroma": 2, "tumour": 2, "(no label)": 0}


def test_loose_images_and_empty_or_missing_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_tiles(config(tmp_path / "nowhere"), seed=0)
    with pytest.raises(DataError, match="no images in class folders"):
        load_tiles(config(tmp_path), seed=0)
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.writestr("inner.zip", b"PK")
    with pytest.raises(DataError, match=r"(?s)no images in class folders; found .*inner\.zip.*fix: unpack archives"):
        load_tiles(config(tmp_path / "outer.zip"), seed=0)
    (tmp_path / "outer.zip").unlink()
    paint(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"1 image is outside class folders: 1.png"):
        load_tiles(config(tmp_path), seed=0)


def test_other_files_and_hidden_images_are_noted(tree: Path) -> None:
    (tree / "train" / "stroma" / "notes.txt").write_text("x")
    (tree / "train" / "stroma" / ".DS_Store").write_text("x")
    (tree / "train" / "stroma" / "._0.png").write_text("x")
    notes = load_tiles(config(tree), seed=0).notes
    assert any("1 file is not an image" in note and "notes.txt" in note for note in notes)
    assert "skipped 1 hidden image: train/stroma/._0.png" in notes


@pytest.mark.parametrize("zipped", [False, True])
def test_images_in_hidden_folders_are_counted_unless_a_link_leads_to_them(tree: Path, zipped: bool) -> None:
    paint(tree / ".cache" / "stroma" / "0.png")
    paint(tree / ".cache" / "stroma" / "1.png")
    paint(tree / "train" / ".fat" / "0.png")
    (tree / "train" / ".empty").mkdir()
    if zipped:
        shutil.make_archive(str(tree.parent / "packed"), "zip", tree)
    else:
        paint(tree / ".linked" / "0.png", 99)
        (tree / "train" / "stroma" / "more").symlink_to(tree / ".linked")
        paint(tree / ".annex" / "1.png", 98)
        (tree / "train" / "stroma" / "link.png").symlink_to(tree / ".annex" / "1.png")
    tiles = load_tiles(config(tree.parent / "packed.zip" if zipped else tree), seed=0)
    assert "skipped 3 hidden images: .cache/stroma/0.png, .cache/stroma/1.png, train/.fat/0.png" in tiles.notes
    assert not any("/." in f"/{name}" for name in tiles.ids)


def test_options_of_other_sources_are_reported_together(tree: Path) -> None:
    with pytest.raises(ConfigError, match=r"tiles.images.*tiles.columns.*tiles.photos"):
        load_tiles(config(tree, images="x.zip", columns={"label": "y"}, photos="crops"), seed=0)


def test_labels_are_hidden_and_mpp_is_set(tree: Path) -> None:
    labels = LabelsConfig(kind="per_class", value=1)
    tiles = load_tiles(config(tree, mpp=0.5, labels=labels.model_dump()), seed=3)
    assert (tiles.mpp == 0.5).all()
    assert tiles.counts()["train"] == {"stroma": 1, "tumour": 1, "(no label)": 14}
    assert tiles.counts()["validation"] == {"stroma": 1, "tumour": 1, "(no label)": 2}
    assert tiles.counts()["test"]["(no label)"] == 0
    assert tiles.counts(truth=True)["train"]["(no label)"] == 0


def test_a_link_to_a_folder_that_is_also_read_elsewhere_is_refused_at_every_level(
    tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for index in range(3):
        paint(elsewhere / "slide" / f"{index}.png", 500 + index)
    (tree / "train" / "mucin").symlink_to(elsewhere)
    tiles = load_tiles(config(tree), seed=0)
    assert tiles.classes == ("mucin", "stroma", "tumour")
    assert "train/mucin/slide/2.png" in tiles.ids
    for link, target in (
        ("train/necrosis", elsewhere),  # a class
        ("train/stroma/p1", elsewhere / "slide"),  # a folder in a class: contradictory labels
        ("train/a", elsewhere / "slide"),  # sorts before the folder that contains it
        ("validation", tree / "test"),  # a split
        ("train/stroma/parent", tree),
    ):
        (tree / link).symlink_to(target)
        with pytest.raises(DataError, match="links to folders that are also read elsewhere: ") as raised:
            load_tiles(config(tree), seed=0)
        assert link in str(raised.value) or link == "train/a"
        (tree / link).unlink()


def test_links_to_missing_images_are_errors_or_quarantined(tree: Path) -> None:
    (tree / "train" / "stroma" / "gone.png").symlink_to(tree / "nowhere.png")
    with pytest.raises(DataError, match=r"1 link points to files that do not exist: .*gone\.png"):
        load_tiles(config(tree), seed=0)
    tiles = load_tiles(config(tree, unreadable="quarantine"), seed=0)
    assert tiles.quarantined == ("train/stroma/gone.png",)
    assert len(tiles) == 26
    (tree / "train" / "mucin").symlink_to(tree / "nowhere")  # a class folder
    with pytest.raises(DataError, match=r"1 link .*mucin"):
        load_tiles(config(tree, unreadable="quarantine"), seed=0)


def test_file_names_that_are_not_utf8_are_errors(tree: Path) -> None:
    shutil.copy(tree / "train" / "stroma" / "0.png", os.fsencode(tree / "train" / "stroma") + b"/\xff.png")
    with pytest.raises(DataError, match=r"1 file has a name that is not UTF-8: .*\\udcff\.png"):
        load_tiles(config(tree), seed=0)


def test_a_folder_without_permission_is_an_error(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def deny(path: Any) -> Any:
        if str(path).endswith("tumour"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(DataError, match=r"(?s)cannot read this folder: Permission denied.*where: .*tumour"):
        load_tiles(config(tree), seed=0)


def test_renamed_split_folders_are_not_classes(tree: Path) -> None:
    for split, folder in (("train", "Trainset"), ("test", "Testset")):
        (tree / split).rename(tree / folder)
    with pytest.raises(
        DataError, match=r"(?s)Testset, Trainset contain no images, only .*stroma, tumour.*tiles\.splits"
    ):
        load_tiles(config(tree), seed=0)
    tiles = load_tiles(config(tree, splits={"train": "Trainset", "test": "Testset"}), seed=0)
    assert tiles.classes == ("stroma", "tumour")
    assert load_tiles(config(tree, classes=("Testset", "Trainset")), seed=0).classes == ("Testset", "Trainset")
    shutil.rmtree(tree / "Testset")
    with pytest.raises(DataError, match=r"(?s)look like splits.*set tiles\.path to .*Trainset"):
        load_tiles(config(tree), seed=0)


def test_patient_folders_may_occur_in_several_classes(tmp_path: Path) -> None:
    for number, classes in enumerate((("benign", "malignant"), ("strain_1", "strain_2"))):
        folder = tmp_path / str(number)
        for name, first in zip(classes, (0, 4), strict=True):
            for patient in range(first, first + 6):
                paint(folder / name / f"patient{patient}" / "1.png", patient)
        tiles = load_tiles(config(folder), seed=0)
        assert tiles.classes == classes and len(tiles) == 12


@pytest.mark.parametrize(
    "folders",
    [
        ["Trainset/Tumour", "Trainset/Stroma", "Testset/tumour", "Testset/stroma"],
        ["Trainset/images/tumour", "Trainset/images/stroma", "Testset/images/tumour", "Testset/images/stroma"],
        ["Trainset/tumour", "Trainset/stroma", "Trainset/mucin", "Trainset/debris", "Testset/tumour"],
        ["my_training/tumour", "holdout/tumour"],
        ["TileTrain/tumour", "TileHoldout/tumour"],
    ],
)
def test_split_folders_with_different_subfolders_are_not_classes(tmp_path: Path, folders: list[str]) -> None:
    for number, name in enumerate(folders):
        paint(tmp_path / name / "a.png", number)
    with pytest.raises(DataError, match=r"(?s)contain no images, only the subfolders .*like splits.*tiles\.splits"):
        load_tiles(config(tmp_path), seed=0)


def test_split_folders_inside_class_folders_are_refused(tmp_path: Path) -> None:
    for index in range(8):
        for name in ("stroma", "tumour"):
            paint(tmp_path / name / ("train" if index < 6 else "test") / f"{index}.png", index)
    with pytest.raises(DataError, match=r"(?s)test, train.*put the class folders inside split folders"):
        load_tiles(config(tmp_path), seed=0)


def test_classes_that_differ_only_in_case_are_errors(tree: Path) -> None:
    paint(tree / "train" / "Tumour" / "a.png", 700)
    with pytest.raises(DataError, match=r"(?s)almost the same name: 'Tumour' and 'tumour'.*tiles\.class_map"):
        load_tiles(config(tree), seed=0)
    merged = {"Tumour": "tumour", "tumour": "tumour", "stroma": "stroma"}
    assert load_tiles(config(tree, class_map=merged), seed=0).classes == ("stroma", "tumour")
    assert len(load_tiles(config(tree, classes=("Tumour", "stroma", "tumour")), seed=0).classes) == 3


@pytest.mark.parametrize("name", ["nan", "None", "-1"])
def test_class_folders_named_like_missing_labels_are_errors(tree: Path, name: str) -> None:
    paint(tree / "train" / name / "a.png", 700)
    with pytest.raises(DataError, match=rf"(?s)1 tile has the label '{name}', which marks a missing.*`unlabelled`"):
        load_tiles(config(tree), seed=0)
    assert name in load_tiles(config(tree, classes=(name, "stroma", "tumour")), seed=0).classes
    dropped = load_tiles(config(tree, class_map={"stroma": "stroma", "tumour": "tumour"}), seed=0)
    assert dropped.classes == ("stroma", "tumour")


def test_a_class_folder_without_readable_images_is_an_error(tree: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tree / split / "mucin").mkdir()
        (tree / split / "mucin" / "1.svs").write_bytes(b"x")
    with pytest.raises(DataError, match=r"(?s)can read: test/mucin \(1 \.svs\), train/mucin.*convert"):
        load_tiles(config(tree), seed=0)
    for top in ("", "tiles/"):
        archive = tmp_path / "tiles.zip"
        with zipfile.ZipFile(archive, "w") as writer:
            for path in sorted(path for path in tree.rglob("*") if path.is_file()):
                writer.write(path, f"{top}{path.relative_to(tree)}")
        with pytest.raises(DataError, match=r"(?s)can read: test/mucin \(1 \.svs\), train/mucin.*convert"):
            load_tiles(config(archive), seed=0)
    assert load_tiles(config(tree, classes=("stroma", "tumour")), seed=0).classes == ("stroma", "tumour")
    for split in ("train", "test"):
        (tree / split / "mucin" / "1.svs").unlink()
    assert "class folders without images: mucin" in load_tiles(config(tree), seed=0).notes
    (tree / "val" / "tumour").mkdir(parents=True)
    (tree / "val" / "tumour" / "1.heic").write_bytes(b"x")
    # Without this error, a validation split would be held out.
    with pytest.raises(DataError, match=r"can read: val/tumour \(1 \.heic\)"):
        load_tiles(config(tree), seed=0)
    (tree / "val" / "tumour" / "1.heic").unlink()
    (tree / "train" / "mucin" / "annotations.XML").write_bytes(b"x")  # annotations are not images, so no class is lost
    assert "class folders without images: mucin" in load_tiles(config(tree), seed=0).notes


def test_classes_without_a_training_label_are_named(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    paint(tree / "test" / "mucin" / "1.png", 900)
    tiles = load_tiles(config(tree), seed=0)
    assert "no training tile is labelled mucin" in tiles.notes[-1]
    assert "no training tile is labelled mucin" in caplog.text


def test_images_next_to_split_folders_are_errors(tree: Path) -> None:
    paint(tree / "loose.png")
    with pytest.raises(DataError, match=r"1 image is outside class folders: loose\.png"):
        load_tiles(config(tree), seed=0)


@pytest.mark.parametrize("keys", [{"classes": [0, 1]}, {"classes": [True]}, {"class_map": {0: "a"}}])
def test_class_names_that_yaml_parses_as_numbers_are_errors(tree: Path, keys: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="write them in quotes"):
        config(tree, **keys)


@pytest.mark.parametrize("name", ["unlabeled", "Unlabelled"])
def test_other_spellings_of_the_unlabelled_folder_are_accepted(tree: Path, name: str) -> None:
    for index in range(4):
        paint(tree / "train" / name / f"{index}.png", index)
    tiles = load_tiles(config(tree), seed=0)
    assert tiles.classes == ("stroma", "tumour")
    assert (tiles.truth == -1).sum() == 4
    assert name in load_tiles(config(tree, classes=("stroma", "tumour", name)), seed=0).classes


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("outer", "inside"), [("x/y", "mucin, stroma"), ("x", "test, train"), ("x/y/z", "test, train")]
)
def test_class_folders_below_other_folders_are_an_error(tmp_path: Path, outer: str, inside: str, zipped: bool) -> None:
    """The outermost folder of a zip is not counted, because zips often have one."""
    folders = [name for part in ("train", "test") for name in (f"{part}/mucin", f"{part}/stroma")]
    base = tmp_path / "tiles" / ("home" if zipped else ".") / outer
    for number, name in enumerate(folders if "train" in inside else ["mucin", "stroma"]):
        paint(base / name / "1.png", number)
    root = tmp_path / "tiles"
    if zipped:
        root = Path(shutil.make_archive(str(root), "zip", root))
    fix = f"repack the zip with the content of {outer} at its top" if zipped else f"set tiles.path to {base}"
    with pytest.raises(DataError, match=rf"(?s)the folders {outer} contain.* subfolders {inside}; .*fix: {fix};"):
        read_tiles(config(root))


def test_a_class_whose_tiles_are_in_one_deep_folder_is_accepted(tmp_path: Path) -> None:
    for number in range(3):
        paint(tmp_path / f"a/mucin/P1/S1/{number}.png", number)
    assert read_tiles(config(tmp_path / "a"), hold_out=False).classes == ("mucin",)


@pytest.mark.parametrize("top", ["", "tiles/", "./", "./tiles/", "tiles\\"])
def test_a_zip_of_class_folders_is_read_like_the_folder(tree: Path, tmp_path: Path, top: str) -> None:
    folder = load_tiles(config(tree), seed=0)
    archive = tmp_path / "tiles.zip"
    with zipfile.ZipFile(archive, "w") as writer:
        for path in sorted(tree.rglob("*.png")):
            name = f"{top}{path.relative_to(tree)}"
            writer.writestr(name.replace("/", "\\") if "\\" in top else name, path.read_bytes())
        writer.writestr(f"__MACOSX/{top}train/stroma/._0.png", b"x")
        writer.writestr(f"{top}train/notes.txt", b"x")
    tiles = load_tiles(config(archive), seed=0)
    for name in ("ids", "labels", "splits", "truth"):
        assert getattr(tiles, name).tolist() == getattr(folder, name).tolist()
    row = tiles.ids.tolist().index("test/tumour/2.png")
    assert tiles.read(row).tobytes() == folder.read(row).tobytes()
    assert "1 file is not an image" in tiles.describe()


@pytest.mark.parametrize(
    ("page", "folder"), [("gbk", "肿瘤"), ("cp932", "腫瘍"), ("cp1251", "Опухоль"), ("cp1252", "Größe")]
)
def test_the_error_for_names_in_another_code_page_names_the_code_page(page: str, folder: str, tmp_path: Path) -> None:
    class Named(zipfile.ZipInfo):  # Windows programs write names in a code page, without the UTF-8 flag
        def _encodeFilenameFlags(self) -> tuple[bytes, int]:
            return self.filename.encode("cp437"), self.flag_bits

    image = io.BytesIO()
    Image.new("RGB", (32, 32)).save(image, "PNG")
    names = [f"{folder}/{number}.png" for number in range(4)]
    with zipfile.ZipFile(tmp_path / "tiles.zip", "w") as archive:
        for name in names:
            archive.writestr(Named(name.encode(page).decode("cp437")), image.getvalue())
    rows = "".join(f"{name},{'ab'[number % 2]},test\n" for number, name in enumerate(names))
    (tmp_path / "tiles.csv").write_text("path,label,split\n" + rows, encoding="utf-8")
    keys = {"source": "table", "path": str(tmp_path / "tiles.csv"), "images": str(tmp_path / "tiles.zip")}
    with pytest.raises(DataError, match=f"match if they are read as {page}: repack the zip"):
        read_tiles(TilesConfig.model_validate(keys))


def test_zip_members_with_unusual_paths_are_not_skipped(tree: Path, tmp_path: Path) -> None:
    names = [str(path.relative_to(tree)) for path in sorted(tree.rglob("*.png"))]
    for unusual, message in (
        ("../train/stroma/0.png", "1 path outside its folder"),
        (f"./{names[1]}", "the same name"),
    ):
        archive = tmp_path / "tiles.zip"
        with zipfile.ZipFile(archive, "w") as writer:
            for name in names:
                writer.write(tree / name, name)
            writer.writestr(unusual, (tree / names[0]).read_bytes())  # unlike `write`, this does not normalise the path
        with pytest.raises(DataError, match=message):
            load_tiles(config(archive), seed=0)


def with_metadata(folder: Path, names: "list[str]", header: str, *, suffix: str = "csv") -> None:
    """Write images and a Hugging Face metadata file for them."""
    for index, name in enumerate(names):
        paint(folder / name, index)
    cells = [
        dict(zip(header.split(","), [name, "ab"[index % 2], "p"], strict=False)) for index, name in enumerate(names)
    ]
    lines = [header, *(",".join(row.values()) for row in cells)] if suffix == "csv" else [*map(json.dumps, cells)]
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(cells), folder / "metadata.parquet")
    else:
        (folder / f"metadata.{suffix}").write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_labels_in_image_folder_metadata_are_not_ignored(tmp_path: Path, suffix: str) -> None:
    names = [f"{'xy'[index % 2]}/{index}.png" for index in range(10)]
    with_metadata(tmp_path / "train", names, "file_name,label", suffix=suffix)
    message = rf"(?s)train/metadata.{suffix} describes the images.*columns file_name, label.*tiles.source: huggingface"
    for path in (tmp_path, tmp_path / "train"):
        with pytest.raises(DataError, match=message.replace("train/", "")):
            load_tiles(config(path), seed=0)
    assert load_tiles(config(tmp_path, classes=["x", "y"]), seed=0).classes == ("x", "y")
    archive = Path(shutil.make_archive(str(tmp_path / "tiles"), "zip", tmp_path, "train"))
    with pytest.raises(DataError, match=rf"(?s)train/metadata.{suffix} describes the images.*unpack the zip"):
        load_tiles(config(archive), seed=0)
    tiles = load_tiles(config(tmp_path, source="huggingface"), seed=0)
    assert tiles.classes == ("a", "b") and len(tiles) == 10


def test_the_advice_for_one_metadata_file_per_split_names_none_of_them_as_the_table(tmp_path: Path) -> None:
    names = [f"{'xy'[index % 2]}/{index}.png" for index in range(4)]
    with_metadata(tmp_path / "train", names, "file_name,label")
    with pytest.raises(DataError, match=r"tiles\.source: table, tiles\.path: .*train/metadata\.csv"):
        load_tiles(config(tmp_path), seed=0)
    with_metadata(tmp_path / "test", names, "file_name,label")
    with pytest.raises(DataError, match=r"set tiles\.source: huggingface; or move the files away"):
        load_tiles(config(tmp_path), seed=0)


def test_reading_columns_of_a_large_zipped_metadata_file_takes_little_memory(tmp_path: Path) -> None:
    with_metadata(tmp_path / "train", [f"{'ab'[index % 2]}/{index}.png" for index in range(20)], "file_name,age")
    with zipfile.ZipFile(tmp_path / "t.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in (tmp_path / "train").rglob("*.*"):
            name = file.relative_to(tmp_path).as_posix()
            archive.writestr(name, file.read_bytes() + b"x" * 2**26 * (file.suffix == ".csv"))
    tracemalloc.start()
    try:
        tiles = load_tiles(config(tmp_path / "t.zip"), seed=0)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
    assert any("train/metadata.csv is not read (columns file_name, age)" in note for note in tiles.notes)


def test_label_metadata_next_to_images_is_an_error_and_captions_are_noted(tmp_path: Path) -> None:
    with_metadata(tmp_path / "flat", [f"{index}.png" for index in range(8)], "file_name,grade,patient")
    with pytest.raises(DataError, match=r"(?s)metadata.csv describes.*columns: \{label: COLUMN\}.*path: file_name"):
        load_tiles(config(tmp_path / "flat"), seed=0)
    table = {"source": "table", "path": str(tmp_path / "flat/metadata.csv")}
    with pytest.raises(DataError, match=r"missing columns: label, path.*\n.*\n.*tiles.columns.path=file_name"):
        load_tiles(TilesConfig.model_validate(table), seed=0)
    with_metadata(tmp_path / "captions", [f"{'xy'[index % 2]}/{index}.png" for index in range(10)], "file_name,text")
    assert "metadata.csv is not read (columns file_name, text)" in load_tiles(config(tmp_path / "captions"), 0).notes[0]
    # Metadata that do not describe images are not mentioned.
    (tmp_path / "captions/metadata.csv").write_text("slide,stain\n1,HE\n", encoding="utf-8")
    assert "metadata" not in load_tiles(config(tmp_path / "captions"), 0).notes[0]


def test_other_files_and_masks_next_to_images_are_noted(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/1_mask.png", "b/x (2).png", "b/x (2)_mask_1.png", "b/3_label.png"):
        paint(tmp_path / name, len(name))
    for name in ("c.zip", "d.tar.gz", "README", "README.md", "table.csv", "metadata.csv"):
        (tmp_path / name).write_bytes(b"x")
    notes = read_tiles(TilesConfig(source="folders", path=str(tmp_path))).notes
    assert f"2 files are not images and were dropped: {tmp_path / 'c.zip'}, {tmp_path / 'd.tar.gz'}" in notes
    masks = "WARNING: 2 tiles are named like masks of other tiles: a/1_mask.png, b/x (2)_mask_1.png; move masks out"
    assert any(note.startswith(masks) for note in notes)
