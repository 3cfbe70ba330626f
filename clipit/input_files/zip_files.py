"""Open zips, check that their central directory lists all files, and recognise other compressed files."""

import logging
import os
import re
import struct
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from clipit.errors import DataError, counted, shortlist

logger = logging.getLogger(__name__)

_START, _ENTRY, _END, _END64 = b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6"
"""Signatures: local header, entry of the central directory, end record, end record of zip64."""
_END_RECORD = struct.Struct("<4s6xHI4xH")  # signature, number of files, bytes of the entries, length of the comment
_END64_RECORD = struct.Struct("<4s28xQ16x")  # signature, number of files
_END64_BYTES = _END64_RECORD.size + 20  # with the locator that follows it
_TAIL_BYTES = 2**16 + _END_RECORD.size + _END64_BYTES  # maximum length of a comment and of the records before it
_JOINED = "several zips may have been joined, but only one would be read; pass each zip separately"
_UTF8 = 0x800
"""Flag bit of a member whose name is UTF-8."""
_CODE_PAGES = ("gbk", "big5", "cp932", "euc_kr", "cp1251", "cp866", "cp1252", "cp850", "cp1253", "cp1250", "cp852")
"""Code pages of Windows programs that write names without marking them as UTF-8."""
_COMPRESSED = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "bzip2": re.compile(rb"BZh[1-9]1AY&SY"),
    "xz": re.compile(rb"\xfd7zXZ"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd"),
}
"""First bytes of compressed files."""
_MARK_BYTES = 10
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
_UNPACK = {"gzip": "gunzip", "bzip2": "bunzip2", "xz": "unxz", "zstd": "unzstd"}
_noted: set[Path] = set()  # zips whose names this process has logged


def compression(data: bytes) -> str:
    """Name the method with which a file is compressed, given its first bytes; "" if it is not."""
    return next((method for method, mark in _COMPRESSED.items() if mark.match(data)), "")


def reject_compressed(data: bytes, where: object) -> None:
    """Raise an error if the first bytes of a file are those of a compressed file.

    Raises:
        DataError: The file is compressed.
    """
    if method := compression(data):
        raise DataError(
            f"the file is compressed with {method}",
            where=where,
            fix=f"decompress it, for example with {_UNPACK[method]} or 7-Zip, and use the decompressed file",
        )


def check_uncompressed(path: Path) -> None:
    """Check that a path is not a compressed file, whatever its suffix.

    Raises:
        DataError: The file is compressed.
    """
    if path.is_file():
        with path.open("rb") as stream:
            reject_compressed(stream.read(_MARK_BYTES), path)


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip, and check that its central directory is complete, because zipfile does not notice unlisted files.

    Raises:
        BadZipFile: The zip is damaged, or its central directory does not list all files.
    """
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        with path.open("rb") as stream:
            if stream.read(len(_START)) == _START and "not a zip file" in str(error):
                raise zipfile.BadZipFile(f"its end is missing: it is truncated, or {_JOINED}") from error
        raise
    with archive:
        _check_directory(path, archive)
        _note_names(path, archive.infolist())
        yield archive


def member_name(info: zipfile.ZipInfo) -> str:
    """Return the path of a member, with forward slashes, because some Windows programs write backslashes.

    A name that is not marked as UTF-8 is read as UTF-8 if possible, because macOS does not mark names. Otherwise, it is
    read as code page 437, as zipfile does.
    """
    name = info.filename
    if not info.flag_bits & _UTF8 and not name.isascii():
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/")


def describe_code_page(wanted: Iterable[str], found: Iterable[str]) -> str:
    """Describe the code page in which the names in a zip match wanted names; "" if there is none.

    Args:
        wanted: Names in a table that were not found in the zip.
        found: Names in the zip, as returned by `member_name`.
    """
    foreign, missing = [name for name in found if not name.isascii()], set(wanted)
    if not missing or all(map(str.isascii, missing)):
        return ""
    for page in _CODE_PAGES:
        names = set()
        for name in foreign:
            with suppress(UnicodeError):
                names.add(unicodedata.normalize("NFC", name.encode("cp437").decode(page)))
        if missing <= names:
            return (
                f"the names in the zip are not Unicode, and match if they are read as {page}: repack the zip with a "
                "program that writes UTF-8, such as 7-Zip"
            )
    return ""


def _note_names(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Warn, once per process and zip, about names that are read as code page 437, because few programs write it."""
    names = [
        info.filename
        for info in members
        if not (info.flag_bits & _UTF8 or info.filename.isascii()) and member_name(info) == info.filename
    ]
    if names and path not in _noted:
        _noted.add(path)
        logger.warning(
            f"{path}: {counted(len(names), 'name in the zip has', 'names in the zip have')} an unknown encoding: "
            f"{shortlist(names, 3)}; if letters are wrong, repack the zip, for example with 7-Zip"
        )


def _check_directory(path: Path, archive: zipfile.ZipFile) -> None:
    """Compare the number of files with the end record, and check that no other zip precedes or follows.

    Other data may precede the zip, such as the program of a self-extracting archive.
    """
    members = archive.infolist()
    first = min((info.header_offset for info in members), default=archive.start_dir)
    with path.open("rb") as stream:
        signature = stream.read(len(_START))
        stream.seek(max(stream.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
        tail = stream.read()
        follows_zip = first > 0 and (signature == _START or _has_end(stream, first))
    start = tail.rfind(_END, 0, len(tail) - _END_RECORD.size + len(_END))
    _, count, _, comment = _END_RECORD.unpack_from(tail, start)
    listed = len(members) & 0xFFFF
    if tail[max(start - _END64_BYTES, 0) :].startswith(_END64):
        listed, (_, count) = len(members), _END64_RECORD.unpack_from(tail, start - _END64_BYTES)
    elif count == 0xFFFF:  # too many for the end record
        count = listed
    if count != listed:
        raise zipfile.BadZipFile(f"{counted(len(members), 'file')} found, {count:,} expected")
    if cut := [info.filename for info in members if "\0" in info.orig_filename]:  # zipfile truncates the name there
        raise zipfile.BadZipFile(f"null character in the name of a file: {cut[0]!r}")
    if filled := [info.filename for info in members if info.is_dir() and info.file_size]:
        raise zipfile.BadZipFile(f"a folder that contains data, probably a file: {filled[0]!r}")
    if follows_zip:
        raise zipfile.BadZipFile(f"it starts with files that its central directory does not list: {_JOINED}")
    rest = tail[start + _END_RECORD.size + comment :]
    if rest.startswith(b"PK") or _START in rest:
        raise zipfile.BadZipFile(f"more data after its end: {_JOINED}")


def _has_end(stream: BinaryIO, stop: int) -> bool:
    """Return whether another zip, with a central directory and an end record, ends before a position."""
    stream.seek(max(stop - _TAIL_BYTES, 0))
    before = stream.read(stop - stream.tell())
    end = before.rfind(_END, 0, len(before) - _END_RECORD.size + len(_END))
    if end < 0:
        return False
    size = _END_RECORD.unpack_from(before, end)[2]
    stream.seek(max(stop - len(before) + end - size, 0))
    return stream.read(len(_ENTRY)) == _ENTRY
