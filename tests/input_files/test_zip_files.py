"""Test damaged and unusual zip files in all readers that open them."""

import zipfile
from pathlib import Path

import pytest

from clipit.config.run import ReportsConfig
from clipit.errors import DataError
from clipit.images.image_set import open_images
from clipit.input_files.zip_files import open_zip
from clipit.reports.readers import read_reports
from clipit.reports.workbooks import read_workbook


def write_zip(path: Path, *names: str) -> bytes:
    """Write a zip of small files, and return its bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "Colon.")
    return path.read_bytes()


def damaged_zips(folder: Path) -> dict[str, bytes]:
    """Make zips from which zipfile reads only some files, by the expected error message."""
    first, second = write_zip(folder / "1", "a.txt", "b.txt"), write_zip(folder / "2", "c.txt")
    start = first.index(b"PK\1\2")
    hidden = bytearray(first)
    hidden[start + 32 : start + 34] = (46 + 5).to_bytes(2, "little")  # a comment that hides the second entry
    many = bytearray(first)
    many[-12:-10] = b"\3\0"
    large = write_zip(folder / "3", *(f"{number}.txt" for number in range(1000)))
    return {
        "1 file found, 2 expected": bytes(hidden),
        "2 files found, 3 expected": bytes(many),
        r"null character in the name of a file: 'b'": first[:start] + first[start:].replace(b"b.txt", b"b\0txt"),
        r"a folder that contains data, probably a file: 'b.tx/'": first[:start]
        + first[start:].replace(b"b.txt", b"b.tx/"),
        "it starts with files that its central directory does not list: several zips": first + second,
        "more data after its end: several zips": first + second[:-22],
        "more data after its end: several": first + b"\n" + second[:-22],
        "it starts with files that its central directory does not list: several": b"#!/bin/sh\n"
        + first
        + b"\n"
        + second,
        "its end is missing: it is truncated, or several zips": first + large[:-22],
    }


@pytest.mark.parametrize("number", range(9))
def test_zips_with_unlisted_files_are_errors(tmp_path: Path, number: int) -> None:
    message, content = list(damaged_zips(tmp_path).items())[number]
    for name in ("c.zip", "c.xlsx"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"not a readable zip: {message}"):
        open_images(tmp_path / "c.zip")
    with pytest.raises(DataError, match=f"cannot read this zip file: {message}"):
        read_reports(ReportsConfig(path=str(tmp_path / "c.zip")))
    with pytest.raises(DataError, match=f"cannot read this workbook: {message}"):
        read_workbook(tmp_path / "c.xlsx", None, None, "reports.sheet")


@pytest.mark.parametrize("comment", [b"", b"Exported from the archive.\0"])
def test_zips_with_data_before_or_after_them_can_be_read(tmp_path: Path, comment: bytes) -> None:
    write_zip(tmp_path / "a.zip", "a.txt", "b.txt")
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.comment = comment
    content = (tmp_path / "a.zip").read_bytes()
    for before, after in ((b"", b""), (b"#!/bin/sh\nunpack me\n", b""), (b"", bytes(512))):
        (tmp_path / "b.zip").write_bytes(before + content + after)
        with open_zip(tmp_path / "b.zip") as archive:
            assert archive.namelist() == ["a.txt", "b.txt"]


def test_zip64_file_counts_are_checked(tmp_path: Path) -> None:
    content = write_zip(tmp_path / "a.zip", *(f"{number}" for number in range(2**16 + 1)))
    with open_zip(tmp_path / "a.zip") as archive:
        assert len(archive.namelist()) == 2**16 + 1
    total = content.rindex(b"PK\6\6") + 32
    (tmp_path / "a.zip").write_bytes(content[:total] + b"\2" + content[total + 1 :])
    with pytest.raises(zipfile.BadZipFile, match="65,537 files found, 65,538 expected"), open_zip(tmp_path / "a.zip"):
        pass


@pytest.mark.parametrize(
    ("encoding", "read_as", "is_noted"),
    [("utf-8", "Drüse", False), ("cp437", "Drüse", True), ("cp1252", "Drⁿse", True)],
)
def test_names_without_a_stated_encoding(
    tmp_path: Path, encoding: str, read_as: str, is_noted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """macOS writes UTF-8 without the flag, and old Windows programs use other encodings."""
    letters = "ü".encode(encoding)
    for name, content in (("a.zip", "png"), ("b.zip", "txt")):
        placeholder = f"Dr{'_' * len(letters)}se"
        write_zip(tmp_path / name, f"{placeholder}/1.{content}", f"x/2.{content}")
        data = (tmp_path / name).read_bytes().replace(placeholder.encode(), b"Dr" + letters + b"se")
        (tmp_path / name).write_bytes(data)
    images = open_images(tmp_path / "a.zip")
    assert list(images.ids) == [f"{read_as}/1.png", "x/2.png"]
    assert images.reader.open(0).getvalue() == b"Colon."
    reports = read_reports(ReportsConfig(path=str(tmp_path / "b.zip"))).reports
    assert [report.report_id for report in reports] == [f"{read_as}/1", "x/2"]
    assert sum("an unknown encoding" in line for line in caplog.messages) == 2 * is_noted
