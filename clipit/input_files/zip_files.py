"""Open zips, and check that their directory lists all of their files."""

import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipit.errors import counted

_START, _END, _END64 = b"PK\3\4", b"PK\5\6", b"PK\6\6"  # signatures: local header, end record, end record of zip64
_END_RECORD = struct.Struct("<4s6xH8xH")  # signature, number of files, length of the comment
_END64_RECORD = struct.Struct("<4s28xQ16x")  # signature, number of files
_END64_BYTES = _END64_RECORD.size + 20  # with the locator that follows it
_TAIL_BYTES = 2**16 + _END_RECORD.size + _END64_BYTES  # maximum length of a comment and of the records before it
_JOINED = "several zips may have been joined, but only one would be read; pass each zip separately"


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip, and check that its directory is complete, because zipfile does not notice unlisted files.

    Raises:
        BadZipFile: The zip is damaged, or its directory does not list all files.
    """
    with zipfile.ZipFile(path) as archive:
        _check_directory(path, archive.infolist())
        yield archive


def _check_directory(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Compare the number of files with the end record, and check that no other zip precedes or follows.

    Other data may precede the zip, such as the program of a self-extracting archive.
    """
    with path.open("rb") as stream:
        signature = stream.read(len(_START))
        stream.seek(max(stream.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
        tail = stream.read()
    start = tail.rfind(_END, 0, len(tail) - _END_RECORD.size + len(_END))
    _, count, comment = _END_RECORD.unpack_from(tail, start)
    found = len(members) & 0xFFFF
    if tail[max(start - _END64_BYTES, 0) :].startswith(_END64):
        found, (_, count) = len(members), _END64_RECORD.unpack_from(tail, start - _END64_BYTES)
    elif count == 0xFFFF:  # too many for the end record
        count = found
    if count != found:
        raise zipfile.BadZipFile(f"{counted(len(members), 'file')} found, {count:,} expected")
    if cut := [info.filename for info in members if "\0" in info.orig_filename]:  # zipfile ends the name there
        raise zipfile.BadZipFile(f"null character in the name of a file: {cut[0]!r}")
    if filled := [info.filename for info in members if info.is_dir() and info.file_size]:
        raise zipfile.BadZipFile(f"a folder that contains data, probably a file: {filled[0]!r}")
    if signature == _START and min((info.header_offset for info in members), default=1) > 0:
        raise zipfile.BadZipFile(f"it starts with files that its directory does not list: {_JOINED}")
    if tail[start + _END_RECORD.size + comment :].startswith(b"PK"):
        raise zipfile.BadZipFile(f"more data after its end: {_JOINED}")
