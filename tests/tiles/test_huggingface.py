import io
import os
import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from labelled_tiles import load_tiles
from logged_lines import capture_log
from PIL import Image

from clipit.config.run import TilesConfig
from clipit.errors import DataError
from clipit.images.decode import Unreadable
from clipit.output_files.artifacts import fingerprint
from clipit.tiles.huggingface import read_huggingface
from clipit.tiles.load_tiles import read_tiles
from clipit.tiles.tileset import TileSet

from .conftest import paint


def config(path: Path | str, **more: object) -> TilesConfig:
    return TilesConfig.model_validate({"source": "huggingface", "path": str(path), **more})


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Save a data set with class names, two mapped splits and an additional one."""
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["normal", "tumour"]),
            "patient": datasets.Value("string"),
        }
    )

    def part(first: int, count: int) -> datasets.Dataset:
        rows = []
        for index in range(first, first + count):
            stream = io.BytesIO()
            noise = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).save(stream, "JPEG")
            data = stream.getvalue()
            rows.append({"image": {"bytes": data, "path": None}, "label": index % 2, "patient": f"p{index}"})
        return datasets.Dataset.from_list(rows, features=features)

    datasets.DatasetDict({"train": part(0, 10), "test": part(10, 4), "extra": part(14, 2)}).save_to_disk(
        str(tmp_path / "ds")
    )
    return tmp_path / "ds"


def test_a_saved_data_set_is_read(saved: Path) -> None:
    import pickle

    tiles = load_tiles(config(saved, splits={"train": "train", "test": "test"}, columns={"group": "patient"}), seed=0)
    assert tiles.classes == ("normal", "tumour")
    assert (tiles.splits == "validation").sum() == 2
    assert "test/000003" in tiles.ids
    index = tiles.ids.tolist().index("test/000003")
    assert tiles.groups[index] == "p13"
    assert tiles.truth[index] == 1
    assert tiles.read(index).size == (8, 8)
    assert pickle.loads(pickle.dumps(tiles)).read(index).tobytes() == tiles.read(index).tobytes()


def test_missing_splits_and_columns_are_errors(saved: Path) -> None:
    with pytest.raises(DataError, match="unknown split values: extra"):
        load_tiles(config(saved), seed=0)
    with pytest.raises(DataError, match="no split val; the data set has: train, test, extra"):
        load_tiles(config(saved, splits={"validation": "val"}), seed=0)
    splits = {"train": "train", "test": "test"}
    with pytest.raises(DataError, match="missing columns: diagnosis; split train has: image, label, patient"):
        load_tiles(config(saved, splits=splits, columns={"label": "diagnosis"}), seed=0)
    with pytest.raises(DataError, match=r"column patient contains .* not images"):
        load_tiles(config(saved, splits=splits, columns={"path": "patient"}), seed=0)


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_outside_the_mapping_are_read_if_standard_and_noted_otherwise(
    saved: Path, tmp_path: Path, streaming: bool
) -> None:
    import datasets

    parts = datasets.load_from_disk(str(saved))
    parts["Testing"] = parts.pop("test")
    parts.save_to_disk(str(tmp_path / "renamed"))
    mapped = config(tmp_path / "renamed", splits={"train": "train"}, streaming=streaming)
    tiles = read_tiles(mapped, root=tmp_path / "kept")
    assert (tiles.splits == "test").sum() == 4 and len(tiles) == 14
    size = "" if streaming else " (2 tiles)"
    assert f"splits that tiles.splits does not name are dropped: extra{size}" in tiles.notes
    merged = mapped.model_copy(update={"splits": {"train": ("train", "extra")}})
    assert len(read_tiles(merged, root=tmp_path / "kept")) == 16


def test_an_empty_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot load this data set"):
        load_tiles(config(tmp_path / "empty"), seed=0)


def test_the_error_gives_the_reason_if_a_data_set_cannot_be_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The datasets package uses the name of the zip as a class."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    (tmp_path / "set").mkdir()
    with zipfile.ZipFile(tmp_path / "set" / "train.zip", "w") as archive:
        for name in ("benign/1.png", "tumour/2.png"):
            archive.writestr(name, stream.getvalue())
    with pytest.raises(DataError, match=r"cannot load this data set: (?!DatasetGenerationError)"):
        load_tiles(config(tmp_path / "set"), seed=0)


def plain(folder: Path, labels: Sequence[object], **columns: Sequence[object]) -> Path:
    """Save a data set whose label column holds plain values instead of class names."""
    import datasets

    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 8, 7)).save(stream, "PNG")
    images = [{"bytes": stream.getvalue(), "path": None}] * len(labels)
    table = datasets.Dataset.from_dict({"image": images, "label": list(labels), **columns})
    table.cast_column("image", datasets.Image()).save_to_disk(str(folder))
    return folder


def test_labels_are_stripped_and_missing_ones_are_not_a_class(tmp_path: Path) -> None:
    tiles = load_tiles(config(plain(tmp_path / "a", ["mucin", " mucin ", "stroma", "stroma", None] * 2)), seed=0)
    assert tiles.classes == ("mucin", "stroma")
    assert (tiles.truth == -1).sum() == 2
    tiles = load_tiles(config(plain(tmp_path / "b", [0, 1, 0, 1, -1] * 2)), seed=0)
    assert tiles.classes == ("0", "1")
    assert any("2 tiles with the label -1 treated as unlabelled" in note for note in tiles.notes)
    tiles = load_tiles(config(plain(tmp_path / "c", [0.0, 1.0, 0.0, 1.0, float("nan")] * 2)), seed=0)
    assert tiles.classes == ("0.0", "1.0")
    tiles = load_tiles(config(plain(tmp_path / "d", [b"mucin", b"stroma"] * 5)), seed=0)
    assert tiles.classes == ("mucin", "stroma")
    with pytest.raises(DataError, match=r"2 tiles have the label 'NA'.*train/000004, train/000009"):
        load_tiles(config(plain(tmp_path / "e", ["a", "b", "a", "b", "NA"] * 2)), seed=0)
    with pytest.raises(DataError, match=r"(?s)row 4 contains a line break .*where: .*split train"):
        load_tiles(config(plain(tmp_path / "f", ["a", "b", "a", "b", "a\nb"] * 2)), seed=0)


@pytest.mark.parametrize("value", ["0.5 um", "0", "-1", "inf", "5e-07", "500", "1,000"])
def test_mpp_must_be_a_plausible_number_of_micrometres(tmp_path: Path, value: str) -> None:
    path = plain(tmp_path / "a", ["a", "b"] * 5, mpp=["0.5", value] * 5)
    with pytest.raises(DataError, match=f"invalid mpp '{value}' in train/000001"):
        load_tiles(config(path), seed=0)


def test_damaged_arrow_files_are_errors_or_unreadable_images(tmp_path: Path) -> None:
    folder = plain(tmp_path / "a", ["mucin", "stroma"] * 5)
    (arrow,) = folder.glob("*.arrow")
    content = arrow.read_bytes()
    for seed in range(12):
        random = np.random.default_rng(seed)
        data = np.frombuffer(content, dtype=np.uint8).copy()
        data[random.integers(0, len(data), 6)] = random.integers(0, 256, 6)
        arrow.write_bytes(data.tobytes())
        try:
            tiles = load_tiles(config(folder), seed=0)
        except DataError:
            continue
        assert all(isinstance(tiles.try_read(row), Image.Image | Unreadable) for row in range(len(tiles)))


@pytest.mark.parametrize("splits", [False, True])
def test_images_that_the_data_set_lacks_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, splits: bool
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folders = ("train", "test") if splits else ("",)
    for split in folders:
        root = tmp_path / "set" / split
        root.mkdir(parents=True)
        for number in range(8):
            noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / f"{number}.png")
        rows = [f"{number}.png,{'ab'[number % 2]}" for number in range(6)]
        (root / "metadata.csv").write_text("\n".join(["file_name,label", *rows, ""]), encoding="utf-8")
    (note,) = read_huggingface(config(tmp_path / "set")).notes
    assert note.startswith(f"{4 if splits else 2} images in the folder are not in the data set")
    assert ("test/6.png, test/7.png, train/6.png" if splits else "6.png, 7.png") in note
    for split in folders:
        for name in ("6.png", "7.png"):
            (tmp_path / "set" / split / name).unlink()
    assert read_huggingface(config(tmp_path / "set")).notes == ()


@pytest.mark.parametrize("streaming", [False, True])
def test_an_image_folder_that_lists_a_file_twice_is_refused(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "set/train").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"set/train/{number}.png")
    rows = ["file_name,label", "0.png,a", "1.png,b", "2.png,a", "1.png,a", ""]
    (tmp_path / "set/train/metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(DataError, match=r"1 file occurs more than once: \S*1.png \(train/000001, train/000003\)"):
        read_tiles(config(tmp_path / "set", streaming=streaming), root=tmp_path / "kept")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_saved_image_folder_may_contain_equal_file_names(tmp_path: Path, streaming: bool) -> None:
    """`save_to_disk` stores the images but only the file name of each path."""
    import datasets

    for folder in ("train/a", "train/b"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8), (ord(folder[-1]), 0, 0)).save(tmp_path / "set" / folder / "0.png")
    datasets.load_dataset(str(tmp_path / "set")).save_to_disk(str(tmp_path / "saved"))
    tiles = read_tiles(config(tmp_path / "saved", streaming=streaming), root=tmp_path / "kept", hold_out=False)
    assert tiles.ids.tolist() == ["train/000000", "train/000001"]


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_files_with_different_class_orders_are_refused(tmp_path: Path, streaming: bool) -> None:
    """The datasets package applies the class names of one file to all files."""
    import datasets

    folder = tmp_path / "set"
    folder.mkdir()

    def write(split: str, names: list[str]) -> None:
        stream = io.BytesIO()
        Image.new("RGB", (8, 8)).save(stream, "PNG")
        rows = [{"image": {"bytes": stream.getvalue(), "path": None}, "label": number % 2} for number in range(12)]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        datasets.Dataset.from_list(rows, features=features).to_parquet(str(folder / f"{split}.parquet"))

    def read() -> TileSet:
        return read_tiles(config(folder, streaming=streaming), root=tmp_path / "out")

    write("train", ["benign", "tumour"])
    write("test", ["tumour", "benign"])
    message = r"(?s)classes of the column label are benign, tumour, but tumour, benign in test.parquet.*train.parquet"
    with pytest.raises(DataError, match=message):
        read()
    write("test", ["benign", "tumour"])
    assert read().classes == ("benign", "tumour")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("damage", "message"), [("cut", "cannot|magic bytes"), ("empty", "a parquet file has no rows")]
)
def test_an_unreadable_parquet_file_is_named(
    tmp_path: Path, streaming: bool, damage: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    import datasets
    import pyarrow.parquet as pq

    folder = tmp_path / "set"
    folder.mkdir()
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    image = {"bytes": stream.getvalue(), "path": "1.png"}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    for part in range(2):
        table = datasets.Dataset.from_dict(
            {"image": [image] * 8, "label": ["a", "b"] * 4}, features=features
        ).data.table
        pq.write_table(table.slice(0, 0) if (damage, part) == ("empty", 1) else table, folder / f"train-{part}.parquet")
    broken = folder / "train-1.parquet"
    if damage == "cut":
        broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(DataError, match=rf"(?s){message}.*where: {re.escape(str(broken))}"):
        read_tiles(config(folder, streaming=streaming), root=tmp_path / "out")
    assert not caplog.records


def test_patients_stored_as_class_indices_get_their_names(tmp_path: Path) -> None:
    import datasets

    def part(first: int, names: list[str], codes: list[int]) -> datasets.Dataset:
        images = [Image.fromarray(np.full((8, 8, 3), first + code, np.uint8)) for code in codes]
        columns = {"image": images, "label": [code % 2 for code in codes], "group": codes}
        kinds = {"label": datasets.ClassLabel(names=["a", "b"]), "group": datasets.ClassLabel(names=names)}
        return datasets.Dataset.from_dict(columns, features=datasets.Features({"image": datasets.Image(), **kinds}))

    train = part(0, ["p0", "p1", "p2", "p3", "p4", "p5"], [0, 1, 2, 3, 4, 5])
    datasets.DatasetDict({"train": train, "test": part(100, ["p8", "p9"], [0, 1])}).save_to_disk(str(tmp_path / "good"))
    assert {"p0", "p9"} < set(read_tiles(config(tmp_path / "good")).groups.tolist())
    datasets.DatasetDict({"train": train, "test": part(100, ["p9", "p0"], [1, -1])}).save_to_disk(str(tmp_path / "bad"))
    with pytest.raises(DataError, match=r"in more than one split: p0 \(test, train\)"):
        read_tiles(config(tmp_path / "bad"))


def test_unfinished_and_copied_parquet_files_are_reported(tmp_path: Path) -> None:
    import datasets

    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    rows = [{"image": {"bytes": stream.getvalue(), "path": None}, "label": label} for label in ("a", "b")]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / "set/train.parquet"))
    part = tmp_path / "set/more.parquet.part"
    part.write_bytes(b"x")
    warning = f"WARNING: 1 compressed or unfinished file is not read: {part}"
    assert read_huggingface(config(tmp_path / "set")).notes == (warning,)
    shutil.copy(tmp_path / "set/train.parquet", tmp_path / "set/train-2.parquet")
    with pytest.raises(DataError, match=r"1 data file is a copy: \S*train-2.parquet = \S*train.parquet"):
        read_huggingface(config(tmp_path / "set"))


def _image_folder(folder: Path, names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)


_TYPED_ROWS = (
    ("a.png", "None", "007"), ("b.png", "None", "08"), ("c.png", "true", "1e3"), ("d.png", "true", "1000"),
    ("e.png", "", "9"), ("f.png", "true", ""),
)  # fmt: skip
"""File, label and group in rows whose values pandas and pyarrow would convert."""


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_cells_of_a_metadata_file_are_read_as_text(tmp_path: Path, form: str, streaming: bool) -> None:
    import datasets
    import pandas as pd

    folder = tmp_path / "set"
    _image_folder(folder, [name for name, _, _ in _TYPED_ROWS])
    table = pd.DataFrame(_TYPED_ROWS, columns=["file_name", "label", "group"])
    table["extra"] = [[1, 2]] * 6 if form == "jsonl" else "x"
    if form == "csv":
        table.to_csv(folder / "metadata.csv", index=False)
    elif form == "jsonl":
        table.to_json(folder / "metadata.jsonl", orient="records", lines=True)
    else:
        table.to_parquet(folder / "metadata.parquet")
    section = config(folder, streaming=streaming, classes=("None", "true"), group_pattern=None)
    tiles = read_tiles(section, root=tmp_path / "kept", hold_out=False)
    labels = [tiles.classes[label] if label >= 0 else "" for label in tiles.labels.tolist()]
    assert list(zip(labels, tiles.groups.tolist(), strict=True)) == [(label, group) for _, label, group in _TYPED_ROWS]
    with pytest.raises(DataError, match="2 tiles have the label 'None'"):
        read_tiles(config(folder, streaming=streaming), root=tmp_path / "kept")
    assert not any("datasets package read" in note for note in tiles.notes)
    assert datasets.load_dataset_builder(str(folder)).name == "imagefolder"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,label,group\n0.png,a,P0\n1.png,b\n", "record 2 .line 3. has 2 fields, but the header has 3"),
        ("file_name,label\n0.png,a\n2.png,b\n", r"1 of 2 files in the table is missing: 2.png"),
        ("image,label\n0.png,a\n1.png,b\n", "the columns are image, label, but none is file_name"),
        ("file_name,image,label\n0.png,x,a\n1.png,y,b\n", "two columns for one name .*image .file_name, image."),
        ("file_name,label\n0.png,a\n1.png,\"b\nc\"\n", "row 1 contains a line break"),
    ],
)  # fmt: skip
def test_an_invalid_metadata_file_is_refused(tmp_path: Path, text: str, message: str, streaming: bool) -> None:
    folder = tmp_path / "set"
    _image_folder(folder, ["0.png", "1.png"])
    (folder / "metadata.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_tiles(config(folder, streaming=streaming), root=tmp_path / "kept")


def test_metadata_files_of_several_folders_and_splits_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for part in ("train/x", "train/y", "test"):
        _image_folder(folder / part, ["sub/0.png", "1.png"])
        rows = f"file_name,label\nsub/0.png,{part[-1]}0\n1.png,{part[-1]}1\n"
        (folder / part / "metadata.csv").write_text(rows, encoding="utf-8")
    tiles = read_tiles(config(folder), hold_out=False)
    assert [tiles.classes[label] for label in tiles.labels] == ["x0", "x1", "y0", "y1", "t0", "t1"]
    (folder / "train/y/metadata.csv").write_text("file_name,class\n1.png,a\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"the columns are file_name, class, but those of \S*x/metadata.csv are file_n"):
        read_tiles(config(folder))


def test_a_replaced_file_with_the_same_modification_time_is_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "set"

    def write(file: Path, content: str | bytes) -> TileSet:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        for path in folder.iterdir():
            os.utime(path, ns=(1_600_000_000_000_000_000, 1_600_000_000_000_000_000))
        return read_tiles(config(folder), hold_out=False)

    _image_folder(folder, ["0.png", "1.png"])
    first = write(folder / "metadata.csv", "file_name,label\n0.png,a\n1.png,b\n")
    assert first.classes == ("a", "b")
    assert write(folder / "metadata.csv", "file_name,label\n0.png,c\n1.png,d\n").classes == ("c", "d")
    assert write(folder / "0.png", (folder / "1.png").read_bytes() + b" ").fingerprint != first.fingerprint


def test_a_replaced_parquet_file_with_the_same_modification_time_is_read_again(tmp_path: Path) -> None:
    import datasets

    versions = []
    for number in range(2):
        stream = io.BytesIO()
        Image.new("RGB", (8, 8), (number, 0, 0)).save(stream, "PNG")
        rows = {
            "image": [{"bytes": stream.getvalue(), "path": None}] * (2 + number),
            "label": ["a", "b", "c"][: 2 + number],
        }
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
        (tmp_path / "set").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "set/train.parquet"))
        os.utime(tmp_path / "set/train.parquet", ns=(1_600_000_000_000_000_000, 1_600_000_000_000_000_000))
        versions.append(read_tiles(config(tmp_path / "set"), hold_out=False))
    assert [tiles.classes for tiles in versions] == [("a", "b"), ("a", "b", "c")]
    assert not set(versions[0].stamps.tolist()) & set(versions[1].stamps.tolist())


@pytest.mark.parametrize("kind", ["parquet", "zip"])
def test_the_fingerprint_does_not_depend_on_the_folder(tmp_path: Path, kind: str) -> None:
    import datasets

    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 0, 0)).save(stream, "PNG")
    (tmp_path / "first").mkdir()
    if kind == "parquet":
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
        rows = {"image": [{"bytes": stream.getvalue(), "path": None}] * 2, "label": ["a", "b"]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "first/train.parquet"))
    else:
        with zipfile.ZipFile(tmp_path / "first/train.zip", "w") as archive:
            for name in "ab":
                archive.writestr(f"{name}.png", stream.getvalue())
            archive.writestr("metadata.csv", "file_name,label\na.png,a\nb.png,b\n")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    (tmp_path / "link").symlink_to(tmp_path / "second")
    sets = [read_tiles(config(tmp_path / name), hold_out=False) for name in ("first", "second", "link")]
    assert len({tiles.fingerprint for tiles in sets}) == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_metadata_in_a_zip_is_read_as_text_by_the_datasets_package(tmp_path: Path, streaming: bool) -> None:
    """Values such as None are still lost, hence the warning."""
    _image_folder(tmp_path / "files", ["0.png", "1.png"])
    (tmp_path / "files/metadata.csv").write_text("file_name,label,group\n0.png,01,007\n1.png,2,08\n", encoding="utf-8")
    (tmp_path / "set").mkdir()
    with zipfile.ZipFile(tmp_path / "set/train.zip", "w") as archive:
        for file in (tmp_path / "files").iterdir():
            archive.write(file, file.name)
    log_lines = capture_log()
    tiles = read_tiles(config(tmp_path / "set", streaming=streaming), root=tmp_path / "kept", hold_out=False)
    assert tiles.classes == ("01", "2") and tiles.groups.tolist() == ["007", "08"]
    assert any(
        "the datasets package read the metadata file of this image folder" in n for n in (*tiles.notes, *log_lines)
    )


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_a_column_of_splits_that_is_not_read_is_noted(tmp_path: Path, streaming: bool, named: bool) -> None:
    import datasets

    kind = datasets.ClassLabel(names=["Train", "val"]) if named else datasets.Value("string")
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    image = {"bytes": stream.getvalue(), "path": None}
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Value("string"), "phase": kind, "set": datasets.Image()}
    )
    rows = [
        {"image": image, "label": "ab"[row % 2], "phase": ("Train", "val")[row % 2], "set": image} for row in range(6)
    ]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "set"))
    tiles = read_tiles(config(tmp_path / "set", streaming=streaming), root=tmp_path / "kept", hold_out=False)
    (note,) = tiles.notes
    assert note.startswith("column phase contains splits but is not read") and "split: phase}" in note


def test_columns_of_streamed_metadata_can_be_named_after_the_first_command(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(4)]
    _image_folder(tmp_path / "files", names)
    rows = [f"{name},{'ab'[row % 2]},0{row},0.5" for row, name in enumerate(names)]
    (tmp_path / "files/metadata.csv").write_text("\n".join(["file_name,label,donor,mpp", *rows]), encoding="utf-8")
    (tmp_path / "set").mkdir()
    with zipfile.ZipFile(tmp_path / "set/train.zip", "w") as archive:
        for file in (tmp_path / "files").iterdir():
            archive.write(file, file.name)
    for columns in ({}, {"group": "donor"}):
        streamed = config(tmp_path / "set", streaming=True, columns=columns)
        tiles = read_tiles(streamed, root=tmp_path / "kept", hold_out=False)
    assert tiles.groups.tolist() == ["00", "01", "02", "03"] and tiles.mpp.tolist() == [0.5] * 4
    assert len([*(tmp_path / "kept").glob("kept_tiles-*")]) == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_a_stray_quotation_mark_in_zipped_metadata_is_an_error(tmp_path: Path, streaming: bool) -> None:
    """pandas merges the rows between two quotation marks without an error."""
    names = [f"{number}.png" for number in range(6)]
    _image_folder(tmp_path / "files", names)
    rows = [f"{name},{'ab'[number % 2]},fine" for number, name in enumerate(names)]
    rows[1], rows[4] = rows[1].replace("fine", '"fine'), rows[4] + '"'
    (tmp_path / "files/metadata.csv").write_text("\n".join(["file_name,label,note", *rows, ""]), encoding="utf-8")
    (tmp_path / "set").mkdir()
    with zipfile.ZipFile(tmp_path / "set/train.zip", "w") as archive:
        for file in (tmp_path / "files").iterdir():
            archive.write(file, file.name)
    with pytest.raises(DataError, match=r"contains 3 additional rows in column note\n  where: .*train\.zip!metadata"):
        read_tiles(config(tmp_path / "set", streaming=streaming), root=tmp_path / "kept", hold_out=False)


@pytest.mark.parametrize("streaming", [False, True])
def test_links_that_the_datasets_package_skips_are_errors(tmp_path: Path, streaming: bool) -> None:
    for number, name in enumerate(("set/a/0.png", "set/b/0.png", "elsewhere/0.png")):
        paint(tmp_path / name, number)
    section, link = config(tmp_path / "set", streaming=streaming), tmp_path / "set/b/1.png"
    link.symlink_to(tmp_path / "absent.png")
    with pytest.raises(DataError, match=r"links to missing files.*: b/1\.png"):
        read_tiles(section, root=tmp_path / "kept", hold_out=False)
    link.unlink()
    for name, target in (("c", "elsewhere"), ("b/up", "set"), ("d", "set/a")):
        (tmp_path / "set" / name).symlink_to(tmp_path / target)
        with pytest.raises(DataError, match=rf"does not follow links to folders: {name}\n.*\n.*tiles\.source: folders"):
            read_tiles(section, root=tmp_path / "kept", hold_out=False)
        (tmp_path / "set" / name).unlink()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("join", ["/", "_"])
def test_metadata_above_folders_or_files_named_after_splits_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, join: str, streaming: bool
) -> None:
    """The datasets package would read the names of the splits as classes, or no labels at all."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names = [f"{split}{join}{number}.png" for split in ("train", "test") for number in range(4)]
    for number, name in enumerate(names):
        paint(tmp_path / "set" / name, number)
    rows = [f"{name},{'ab'[row % 2]}" for row, name in enumerate(names)]
    (tmp_path / "set/metadata.csv").write_text("\n".join(["file_name,diagnosis", *rows]), encoding="utf-8")
    match = r"(?s)does not read metadata\.csv \(columns file_name, diagnosis\).*fix: set tiles\.source: table"
    with pytest.raises(DataError, match=match):
        read_tiles(config(tmp_path / "set", streaming=streaming), root=tmp_path / "out")


@pytest.mark.parametrize("streaming", [False, True])
def test_metadata_above_split_folders_with_classes_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names = [f"{split}/{kind}/{number}.png" for split in ("train", "test") for kind in "ab" for number in range(2)]
    for number, name in enumerate(names):
        paint(tmp_path / "set" / name, number)
    table = "\n".join(["file_name,patient", *(f"{name},p{row}" for row, name in enumerate(names))])
    (tmp_path / "set/metadata.csv").write_text(table, encoding="utf-8")
    tiles = read_tiles(config(tmp_path / "set", streaming=streaming), root=tmp_path / "out", hold_out=False)
    assert tiles.classes == ("a", "b") and (tiles.labels >= 0).all()
    assert any("does not read metadata.csv (columns file_name, patient)" in note for note in tiles.notes)


def test_class_names_are_stripped_and_compared_like_labels(tmp_path: Path) -> None:
    import datasets

    def tiles(names: Sequence[str], **more: object) -> TileSet:
        features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
        images = [str(paint(tmp_path / f"{number}.png", number)) for number in range(2 * len(names))]
        columns = {"image": images, "label": [number % len(names) for number in range(len(images))]}
        folder = tmp_path / fingerprint(names)
        datasets.Dataset.from_dict(columns, features=datasets.Features(features)).save_to_disk(str(folder))
        return read_tiles(config(folder, **more), hold_out=False)

    assert tiles([" mucin", "stroma\u200b"]).classes == ("mucin", "stroma")
    merged = tiles(["stroma", "stroma ", "mucin", ""])
    assert merged.classes == ("stroma", "mucin") and np.bincount(merged.truth + 1).tolist() == [2, 4, 2]
    with pytest.raises(DataError, match="classes with almost the same name: 'Mucin' and 'mucin'"):
        tiles(["Mucin", "mucin"])
    assert tiles(["Mucin", "mucin"], classes=["Mucin", "mucin"]).classes == ("Mucin", "mucin")
    for missing in ("None", "nan", "-1"):
        others = ["0", "1"] if missing == "-1" else ["a", "b"]
        with pytest.raises(DataError, match=f"2 tiles have the label '{missing}', which marks a missing value"):
            tiles([*others, missing])
        assert tiles([*others, missing], classes=[*others, missing]).classes == (*others, missing)


@pytest.mark.parametrize("extra", ["tumour/sub/x.png", "stray.png", "eval/x.png", "stroma/biopsy_test_1.png"])
@pytest.mark.parametrize("streaming", [False, True])
def test_class_folders_that_datasets_does_not_use_as_labels_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: str, streaming: bool
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for number, name in enumerate(("tumour/0.png", "tumour/1.png", "stroma/0.png", "stroma/1.png", extra)):
        paint(tmp_path / "set" / name, number)
    with pytest.raises(DataError, match=r"missing columns: label; .* has: image(.|\n)*fix: set tiles.source: folders"):
        read_tiles(config(tmp_path / "set", columns={}, streaming=streaming), root=tmp_path / "out")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("names", [["benign", "tumour"], None])
def test_splits_without_the_label_column_are_unlabelled(
    tmp_path: Path, names: list[str] | None, streaming: bool
) -> None:
    import datasets

    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    image = {"bytes": stream.getvalue(), "path": None}
    label = datasets.ClassLabel(names=names) if names else datasets.Value("string")
    images = datasets.Features({"image": datasets.Image()})
    extra = datasets.Dataset.from_dict({"image": [image] * 3}, features=images)
    rows = {"image": [image] * 4, "label": ["benign", "tumour"] * 2}
    train = datasets.Dataset.from_dict(rows, features=datasets.Features({**images, "label": label}))
    datasets.DatasetDict({"extra": extra, "train": train}).save_to_disk(str(tmp_path / "set"))
    keys = config(tmp_path / "set", splits={"train": ["train", "extra"]}, streaming=streaming)
    tiles = read_tiles(keys, root=tmp_path / "kept", hold_out=False)
    assert tiles.classes == ("benign", "tumour") and sorted(tiles.truth) == [-1, -1, -1, 0, 0, 1, 1]
    assert "split extra has no column label: its 3 tiles are unlabelled" in tiles.notes
    keys = config(
        tmp_path / "set", splits={"train": ["train", "extra"]}, streaming=streaming, columns={"label": "kind"}
    )
    with pytest.raises(DataError, match="missing columns: kind; split extra has: image\n"):
        read_tiles(keys, root=tmp_path / "kept", hold_out=False)
