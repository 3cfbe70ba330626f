"""Test images from files, folders and zips (ids, order, errors), and reading ahead."""

import shutil
import threading
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipit.errors import DataError
from clipit.images.decode import ImageError, Unreadable
from clipit.images.image_set import join_images, open_images
from clipit.images.read_ahead import read_ahead, reading_threads


def save(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)
    return path


def test_ids_are_sorted_paths_relative_to_the_folder_or_zip(tmp_path: Path) -> None:
    folder = tmp_path / "tiles"
    for value, name in enumerate(("b/2.png", "a.png", "b/1.jpg", ".hidden.png")):
        save(folder / name, value * 10)
    (folder / "notes.txt").write_text("not an image")
    with zipfile.ZipFile(tmp_path / "tiles.zip", "w") as archive:
        for file in ("b/2.png", "a.png", "b/1.jpg", "notes.txt"):
            archive.write(folder / file, file)
        archive.write(folder / ".hidden.png", "__MACOSX/._a.png")
    for source in (open_images(folder), open_images(tmp_path / "tiles.zip")):
        assert list(source.ids) == ["a.png", "b/1.jpg", "b/2.png"]
        assert np.asarray(source.read(0)).max() == 10 and np.asarray(source.read(2)).max() == 0
        assert "1 file in" in source.notes[0] and "notes.txt" in source.notes[0]
    single = open_images(folder / "b/2.png")
    assert list(single.ids) == ["2.png"] and single.notes == ()


def test_broken_links_are_unreadable_images(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    for name, target in {"b": "gone.png", "c": "c.png", "d": "a.png/d.png"}.items():
        (tmp_path / f"{name}.png").symlink_to(target)
    images = open_images(tmp_path)
    assert list(images.ids) == ["a.png", "b.png", "c.png", "d.png"]
    assert [images.try_read(row) for row in (1, 2, 3)] == [Unreadable("a link to a file that does not exist")] * 3


def test_hidden_images_are_skipped_with_a_note(tmp_path: Path) -> None:
    folder = tmp_path / "tiles"
    for value, name in enumerate((".old/1.png", "b/.old/deep/1.png", "b/.old/2.png")):
        save(folder / name, value)
    with pytest.raises(DataError, match=r"no images found; skipped 3 hidden images: .old/1.png, b/.old/2.png"):
        open_images(folder)
    save(folder / "a.png")
    save(folder / "._a.png")
    with zipfile.ZipFile(tmp_path / "tiles.zip", "w") as archive:
        for file in folder.rglob("*.png"):
            archive.write(file, f"./{file.relative_to(folder)}")
    for path in (folder, tmp_path / "tiles.zip"):
        images = open_images(path)
        assert list(images.ids) == ["a.png"]
        assert images.notes == (f"{path}: skipped 4 hidden images: ._a.png, .old/1.png, b/.old/2.png and 1 more",)


def test_a_zip_written_on_windows_has_the_same_ids_as_its_folder(tmp_path: Path) -> None:
    for value, name in enumerate(("b/1.png", "a/2.png")):
        save(tmp_path / "tiles" / name, value * 10)
    with zipfile.ZipFile(tmp_path / "tiles.zip", "w") as archive:
        archive.writestr("b\\", b"")
        for name in ("b/1.png", "a/2.png"):
            archive.writestr(name.replace("/", "\\"), (tmp_path / "tiles" / name).read_bytes())
    images = open_images(tmp_path / "tiles.zip")
    assert list(images.ids) == list(open_images(tmp_path / "tiles").ids) and images.notes == ()
    assert np.asarray(images.read(0)).max() == 10 and np.asarray(images.read(1)).max() == 0
    with zipfile.ZipFile(tmp_path / "tiles.zip", "a") as archive:
        archive.write(tmp_path / "tiles" / "a" / "2.png", "b/1.png")
    with pytest.raises(DataError, match="1 name occurs more than once in the zip"):
        open_images(tmp_path / "tiles.zip")
    with zipfile.ZipFile(tmp_path / "tiles.zip", "w") as archive:
        archive.writestr("..\\1.png", (tmp_path / "tiles" / "b" / "1.png").read_bytes())
    with pytest.raises(DataError, match="1 path outside its folder"):
        open_images(tmp_path / "tiles.zip")


def test_names_in_decomposed_unicode_are_noted(tmp_path: Path) -> None:
    for name in ("größe 1.png", "größe 2.png", "3.png"):
        save(tmp_path / "mac" / unicodedata.normalize("NFD", name))
        save(tmp_path / "other" / unicodedata.normalize("NFC", name))
    (note,) = open_images(tmp_path / "mac").notes
    assert note.startswith(f"2 image names in {tmp_path / 'mac'} are in decomposed Unicode (NFD)")
    assert open_images(tmp_path / "other").notes == ()
    with zipfile.ZipFile(tmp_path / "mac.zip", "w") as archive:
        archive.write(tmp_path / "mac" / "3.png", unicodedata.normalize("NFD", "größe.png"))
        archive.writestr("notes.txt", b"x")
    skipped, note = open_images(tmp_path / "mac.zip").notes
    assert "notes.txt" in skipped and note.startswith("1 image name in")


def test_joined_sets_keep_their_order_and_must_not_share_ids(tmp_path: Path) -> None:
    sets = [open_images(save(tmp_path / name, value)) for name, value in (("z/1.png", 1), ("a/2.png", 2))]
    joined = join_images(sets)
    assert list(joined.ids) == ["1.png", "2.png"]
    assert [int(np.asarray(joined.read(row)).max()) for row in range(2)] == [1, 2]
    assert joined.fingerprint != join_images(sets[::-1]).fingerprint
    save(tmp_path / "b/1.png")
    with pytest.raises(
        DataError,
        match=rf"1 image id occurs more than once: 1\.png \(.*, .*1\.png\)(.|\n)*folder that contains .*{tmp_path}",
    ):
        join_images([*sets, open_images(tmp_path / "b")])


def test_the_advice_for_equal_ids_in_zips_is_to_unpack_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "tiles.zip", "w") as archive:
        archive.write(save(tmp_path / "1.png"), "1.png")
    monkeypatch.chdir(tmp_path)
    for other in (Path("tiles.zip"), tmp_path / "tiles.zip"):
        with pytest.raises(DataError, match=rf"apart, unpack the zips and pass the folder .*\({tmp_path}\)"):
            join_images([open_images(Path("tiles.zip")), open_images(other)])


@pytest.mark.parametrize(
    ("name", "words"),
    [("gone", "no such file"), ("a.txt", "neither an image file in a supported format"), ("empty", "no images found")],
)
def test_paths_without_images_are_errors(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=words):
        open_images(tmp_path / name)


def test_damaged_images_and_broken_links_are_unreadable(tmp_path: Path) -> None:
    data = save(tmp_path / "whole.png", 7).read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    source = open_images(tmp_path)
    images = [source.try_read(row) for row in range(3)]
    assert [isinstance(image, Unreadable) for image in images] == [True, True, False]
    with pytest.raises(DataError, match=r"cut\.png cannot be decoded"):
        source.read(0)


def test_a_limited_number_of_batches_is_read_ahead_in_order() -> None:
    started: list[int] = []
    lock = threading.Lock()

    def read(item: int) -> int:
        with lock:
            started.append(item)
        return item * 10

    with reading_threads(2) as pool:
        stream = read_ahead([range(i, i + 2) for i in range(0, 40, 2)], read, pool, depth=3)
        assert next(stream) == (range(0, 2), [0, 10])
        assert max(started) < 8, "only three batches should be read ahead of the first"
        assert [results[0] for _, results in stream] == list(range(20, 400, 20))


def test_an_error_of_a_reader_is_raised_for_its_batch() -> None:
    def read(item: int) -> int:
        if item == 3:
            raise DataError("item 3")
        return item

    with reading_threads(2) as pool:
        stream = read_ahead([[0, 1], [2, 3], [4]], read, pool)
        assert next(stream)[1] == [0, 1]
        with pytest.raises(DataError, match="item 3"):
            next(stream)


def test_an_image_in_a_zip_with_missing_bytes_is_an_error(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "tiles.zip", "w") as archive:
        for name in ("a.png", "b.png"):
            archive.write(save(tmp_path / name, 50), name)
    content = (tmp_path / "tiles.zip").read_bytes()
    (tmp_path / "tiles.zip").write_bytes(content[:60] + content[63:])
    images = open_images(tmp_path / "tiles.zip")
    with pytest.raises(ImageError, match="bytes are missing from the zip: copy it again"):
        images.reader.read(0)


def test_a_file_in_two_inputs_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "all/part").mkdir(parents=True)
    for name in ("all/a.png", "all/part/b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "copy").mkdir()
    shutil.copy2(tmp_path / "all/part/b.png", tmp_path / "copy/c.png")  # same size and time, but a different file
    assert len(join_images([open_images(tmp_path / "all"), open_images(tmp_path / "copy")])) == 3
    (tmp_path / "link").symlink_to("all/part")
    for inputs in (("all", "all/part"), ("all", "link"), ("all/part/b.png", "all")):
        with pytest.raises(DataError, match=r"1 image file belongs to more than one input: \S*/all/part/b.png"):
            join_images([open_images(tmp_path / name) for name in inputs])


def test_hidden_image_is_read_if_it_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (90, 0, 90)).save(tmp_path / ".a.png")
    assert list(open_images(tmp_path / ".a.png").ids) == [".a.png"]
