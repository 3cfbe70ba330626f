"""Image folders of the datasets package whose images are in zips, or listed in a way that it misreads."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipit.config.run import TilesConfig
from clipit.errors import DataError
from clipit.images.decode import Unreadable
from clipit.tiles.load_tiles import read_tiles
from clipit.tiles.tileset import TileSet


def read(folder: Path, streaming: bool = False, **more: object) -> TileSet:
    keys = {"source": "huggingface", "path": str(folder), "streaming": streaming, **more}
    config = TilesConfig.model_validate(keys)
    return read_tiles(config, root=folder.parent / "kept", hold_out=False)


def images(folder: Path, names: Sequence[str]) -> None:
    """Write uniform images; the grey value is the position in the list."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number,) * 3).save(folder / name)


def zipped(archive: Path, names: Sequence[str], texts: Mapping[str, str] | None = None) -> None:
    """Write a zip of such images and of text files."""
    images(archive.with_suffix(""), names)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for name in reversed(names):  # the order in a zip need not be that of the table
            opened.write(archive.with_suffix("") / name, name)
            (archive.with_suffix("") / name).unlink()
        for name, text in (texts or {}).items():
            opened.writestr(name, text)


@pytest.mark.parametrize("streaming", [False, True])
def test_images_in_zips_are_read(tmp_path: Path, streaming: bool) -> None:
    for split, first in (("train", 0), ("test", 4)):
        names = [f"slides/é {number}.png" for number in range(first, first + 4)]
        rows = [f"{name},{'ab'[row % 2]}" for row, name in enumerate(names)]
        zipped(tmp_path / f"set/{split}.zip", names, {"metadata.csv": "\n".join(["file_name,label", *rows])})
    tiles = read(tmp_path / "set", streaming)
    pixels = {str(name): np.asarray(tiles.read(row)).max() for row, name in enumerate(tiles.ids)}
    assert pixels == {f"{split}/{row:06d}": row for split in ("train", "test") for row in range(4)}


def test_a_damaged_image_in_a_zip_is_unreadable(tmp_path: Path) -> None:
    zipped(tmp_path / "set/train.zip", ["0.png", "1.png"], {"metadata.csv": "file_name,label\n0.png,a\n1.png,b\n"})
    data = bytearray((tmp_path / "set/train.zip").read_bytes())
    data[data.index(b"0.png") + 40] ^= 255
    (tmp_path / "set/train.zip").write_bytes(data)
    tiles = read(tmp_path / "set")
    assert [isinstance(tiles.try_read(row), Unreadable) for row in range(2)] == [True, False]


@pytest.mark.parametrize("streaming", [False, True])
def test_images_in_a_zip_next_to_the_metadata_file_are_an_error_with_a_fix(tmp_path: Path, streaming: bool) -> None:
    zipped(tmp_path / "set/images.zip", ["0.png", "1.png"])
    (tmp_path / "set/metadata.csv").write_text("file_name,label\n0.png,a\n1.png,b\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)2 images do not exist: .*0\.png.*not in a zip.*fix: unpack the zip"):
        read(tmp_path / "set", streaming)


def test_a_zip_next_to_an_image_folder_is_no_error(tmp_path: Path) -> None:
    images(tmp_path / "set", ["0.png", "1.png"])
    (tmp_path / "set/metadata.csv").write_text("file_name,label\n0.png,a\n1.png,b\n", encoding="utf-8")
    zipped(tmp_path / "set/more.zip", ["2.png", "3.png"], {"metadata.csv": "file_name,label\n2.png,a\n3.png,b\n"})
    tiles = read(tmp_path / "set")
    assert len(tiles) == 4 and not any(isinstance(tiles.try_read(row), Unreadable) for row in range(4))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("names", [["train"], ["train", "test"]])
def test_class_folders_in_a_zip_are_an_error_with_a_fix(tmp_path: Path, names: list[str], streaming: bool) -> None:
    for name in names:
        zipped(tmp_path / f"set/{name}.zip", ["benign/0.png", "tumour/1.png"])
    with pytest.raises(DataError, match=r"fix: unpack each zip .* for one zip, set tiles\.source: folders"):
        read(tmp_path / "set", streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_fix_for_files_listed_twice_for_words_in_their_names_is_to_rename_them(
    tmp_path: Path, streaming: bool
) -> None:
    images(tmp_path / "set", ["benign/train_a_train_1.png", "tumour/train_b.png"])
    with pytest.raises(
        DataError, match=r"(?s)1 file occurs more than once: .*fix: the datasets package lists .*rename"
    ):
        read(tmp_path / "set", streaming)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("splits", [["train", "test"], ["training", "val"]])
def test_names_of_splits_are_not_labels(tmp_path: Path, splits: list[str], streaming: bool) -> None:
    images(tmp_path / "set", [f"{split}/{number}.png" for split in splits for number in range(3)])
    with pytest.raises(DataError, match=r"(?s)names of splits as labels: .*fix: move the images into class folders"):
        read(tmp_path / "set", streaming)
    assert len(read(tmp_path / "set", streaming, labels={"kind": "none"})) == 6


def test_folders_that_are_not_used_as_labels_are_noted(tmp_path: Path) -> None:
    nested = [f"train/{name}/{patient}/{row}.png" for name in ("a", "b") for patient in ("p", "q") for row in range(2)]
    images(tmp_path / "nested", nested)
    (note,) = (note for note in read(tmp_path / "nested").notes if "innermost" in note)
    assert note.startswith("split train: the labels") and "(p, q), not of those around them (a, b)" in note
    images(tmp_path / "single", ["train/a/0.png", "train/a/1.png", "test/a/2.png", "test/b/3.png"])
    (note,) = (note for note in read(tmp_path / "single").notes if "have no labels" in note)
    assert note.startswith("WARNING: split train: ") and "(a); if these are classes" in note


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("start", ["", "data/", "train/"])
def test_class_folders_are_read_without_notes(tmp_path: Path, start: str, streaming: bool) -> None:
    images(tmp_path / "set", [f"{start}{name}/{number}.png" for name in ("a", "b") for number in range(2)])
    tiles = read(tmp_path / "set", streaming)
    assert tiles.classes == ("a", "b") and not any("folders" in note for note in tiles.notes)


@pytest.mark.parametrize("source", ["huggingface", "folders"])
def test_metadata_in_json_lines_must_be_converted_to_be_read_as_a_table(tmp_path: Path, source: str) -> None:
    names = ["train/a/0.png", "train/b/1.png", "test/a/2.png", "test/b/3.png"]
    images(tmp_path / "set", names)
    lines = [json.dumps({"file_name": name, "label": "x"}) for name in names]
    (tmp_path / "set/metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=r"tiles\.path: .*/metadata\.csv \(convert metadata\.jsonl to csv first\)"):
        read(tmp_path / "set", source=source)
