"""Unpacking complete, damaged and malicious archives."""

import gzip
import stat
import zipfile
from pathlib import Path

import pytest

from clipit.errors import DataError
from clipit.tiles.archives import unpack


def pack(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def test_a_zip_is_unpacked_atomically(tmp_path: Path) -> None:
    archive = pack(tmp_path / "set.zip", {"./": "", "Set/A/1.png": "one", "Set/B/2.png": "two", "__MACOSX/x": "no"})
    (tmp_path / ".Set.unpacking").mkdir()  # left by a killed attempt
    (tmp_path / ".Set.unpacking" / "old").write_text("old")
    folder = unpack(archive, "Set")
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")} == {"A/1.png", "B/2.png"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Set", "set.zip"]


@pytest.mark.parametrize(
    "name", ["../evil.txt", "Set/../../evil.txt", "/evil.txt", "C:/evil.txt", "Set\\..\\..\\evil.txt"]
)
def test_names_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    archive = pack(inner / "set.zip", {"Set/1.png": "one", name: "evil"})
    with pytest.raises(DataError, match=r"path outside its folder: .*evil.txt"):
        unpack(archive, "Set")
    assert not list(tmp_path.rglob("evil.txt")) and not (inner / "Set").exists()


def test_links_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        link = zipfile.ZipInfo("Set/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")
    with pytest.raises(DataError, match="path outside its folder"):
        unpack(tmp_path / "set.zip", "Set")
    assert not (tmp_path / "Set").exists()


def test_a_zip_with_unexpected_content_or_damage_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the zip contains Other, not the folder Set"):
        unpack(pack(tmp_path / "set.zip", {"Other/1.png": "one"}), "Set")
    content = pack(tmp_path / "set.zip", {"Set/1.png": "one" * 100}).read_bytes()
    (tmp_path / "set.zip").write_bytes(content.replace(b"oneone", b"twotwo"))
    with pytest.raises(DataError, match="the archive is damaged"):
        unpack(tmp_path / "set.zip", "Set")
    assert not (tmp_path / "Set").exists()


def test_a_gzipped_file_is_unpacked_atomically(tmp_path: Path) -> None:
    packed = gzip.compress(b"tiles" * 1000)
    (tmp_path / "x.h5.gz").write_bytes(packed)
    assert unpack(tmp_path / "x.h5.gz", "x.h5").read_bytes() == b"tiles" * 1000
    for damaged in (packed[:-10], b"no gzip", packed[:20] + b"\0\0\0\0" + packed[24:]):
        (tmp_path / "y.h5.gz").write_bytes(damaged)
        with pytest.raises(DataError, match="the archive is damaged"):
            unpack(tmp_path / "y.h5.gz", "y.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.h5", "x.h5.gz", "y.h5.gz"]
