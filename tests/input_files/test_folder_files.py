"""Test listing the files of a folder."""

import os
import re
from importlib.resources import files
from pathlib import Path

import pytest

from clipit.errors import DataError
from clipit.images.image_files import image_files
from clipit.input_files import folder_files
from clipit.input_files.folder_files import list_files


def _write_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_links_are_followed_and_each_folder_is_listed_once(tmp_path: Path) -> None:
    outside = _write_file(tmp_path / "outside" / "deep" / "b.png").parent.parent
    data = tmp_path / "data"
    real = _write_file(data / "z" / "a.png")
    (data / "again").symlink_to(outside)
    (data / "twice").symlink_to(outside)
    (data / "a_link_to_z").symlink_to(data / "z")
    (data / "z" / "up").symlink_to(data)
    (data / "loop").symlink_to(data / "loop")
    (data / "file_link.png").symlink_to(real)
    listing = list_files(data, lambda path: path.suffix == ".png")
    assert listing.files == [data / "again/deep/b.png", data / "file_link.png", data / "z/a.png"]
    assert listing.dangling == [data / "loop"] and listing.undecodable == []


def test_hidden_and_system_folders_are_skipped(tmp_path: Path) -> None:
    _write_file(tmp_path / ".cache" / "real" / "a.png")
    _write_file(tmp_path / "lost+found" / "b.png")
    (tmp_path / "tumour").symlink_to(tmp_path / ".cache" / "real")
    assert list_files(tmp_path).files == [tmp_path / "tumour" / "a.png"]


def test_dangling_links_and_undecodable_names_are_listed(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    _write_file(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")))
    _write_file(Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9p/fine.png")))
    listing = list_files(tmp_path)
    assert listing.files == []
    assert listing.dangling == [tmp_path / "gone.png"]
    assert [path.name.isascii() for path in listing.undecodable] == [False, True]
    for name in ("gone_folder", "gone.txt", ".gone"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    listing = list_files(tmp_path, lambda path: path.suffix == ".png")
    assert listing.dangling == [tmp_path / "gone.png", tmp_path / "gone_folder"], "gone_folder may have been a folder"


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_file(tmp_path / "closed" / "a.png")
    scan = os.scandir

    def denied(path: Path) -> object:
        if Path(path).name == "closed":  # permissions do not apply to root
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError, match="cannot read this folder: Permission denied"):
        list_files(tmp_path)


def test_circular_links_are_dangling(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "c").symlink_to(tmp_path / "file" / "c")
    (tmp_path / "d").symlink_to("d" * 300)
    (tmp_path / "file").touch()
    listing = list_files(tmp_path)
    assert listing.dangling == [tmp_path / name for name in "abcd"] and listing.files == [tmp_path / "file"]


@pytest.mark.parametrize(
    "written", ["artefacts/tile_hashes-0123456789abcdef/manifest.json", "runs/own/a-seed0/run.json"]
)
def test_outputs_of_clipit_are_not_listed(tmp_path: Path, written: str) -> None:
    tile = tmp_path / "tumour" / "a.png"
    own_class = tmp_path / "artefacts" / "b.png"  # a class, not an output
    outputs = tmp_path / "outputs"
    for file in (tile, own_class, outputs / written, outputs / "comparisons" / "c.png", outputs / "tiles" / "d.png"):
        _write_file(file)
    listed = list_files(tmp_path)
    assert listed.files == [own_class, outputs / "tiles" / "d.png", tile]
    skipped = sorted({"comparisons", written.split("/")[0]})
    assert listed.outputs == [outputs / name for name in skipped]
    images = image_files(tmp_path, "error")
    assert images.others == []
    assert images.notes == (f"skipped outputs of clipit: {', '.join(f'outputs/{name}' for name in skipped)}",)


def test_all_subfolders_of_the_output_folder_are_known() -> None:
    package = Path(str(files("clipit")))
    sources = [path.read_text(encoding="utf-8") for path in package.rglob("*.py")]
    written = {name for source in sources for name in re.findall(r'config\.output / "(\w+)"', source)}
    assert {"artefacts", "comparisons", "runs"} <= written - {"slides"} <= folder_files._OUTPUTS
