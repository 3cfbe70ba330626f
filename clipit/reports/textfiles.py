"""Read plain-text reports: one per line, or one per file of a folder or zip."""

import codecs
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from clipit.data_files import list_files
from clipit.errors import ConfigError, DataError, shortlist

_HEAD = 1024  # bytes that are checked at the start of a file
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_LARGEST_TEXT = 16 * 2**20  # bytes of one report; longer ones are other data, or zip bombs
_LARGEST_RATIO, _SMALL_TOTAL = 200, 256 * 2**20  # a zip of text shrinks to a tenth, rarely to a hundredth
_DAMAGED = (
    zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError, ValueError, struct.error, zlib.error,
    lzma.LZMAError,
)  # fmt: skip
"""Exceptions that zipfile raises for damaged members; RuntimeError also for encrypted ones."""


class RawReport(NamedTuple):
    """Report as read from its source, before an id is assigned."""

    where: str
    """File and row, for error messages."""
    text: str
    report_id: str | None = None
    organ: str | None = None
    group: str | None = None
    label: str | None = None


def codec(encoding: str) -> str:
    """Return the Python codec of an encoding; UTF-8 also skips a byte order mark.

    Raises:
        ConfigError: The encoding is unknown, or is not a text encoding.
    """
    try:
        name = codecs.lookup(encoding).name
        with suppress(UnicodeDecodeError):
            b"a".decode(name)  # a LookupError for codecs that do not return text, such as base64
    except (LookupError, ValueError) as error:
        raise ConfigError(
            f"unknown text encoding {encoding!r}", where="reports.encoding", fix="use utf-8, latin-1 or cp1252"
        ) from error
    return "utf-8-sig" if name == "utf-8" else name


@contextmanager
def decoding(path: Path, encoding: str) -> Iterator[None]:
    """Convert a decoding error within the block into a `DataError` that names file, line and byte."""
    with path.open("rb") as stream:
        _check_utf16(stream.read(_HEAD), path, encoding)
    try:
        yield
    except UnicodeError as error:
        raise _undecodable(path.read_bytes(), path, encoding) from error


def check_lfs_pointer(path: Path) -> None:
    """Check that a file is not a Git LFS pointer, which a clone without Git LFS contains in place of the data.

    Raises:
        DataError: It is one.
    """
    with path.open("rb") as stream:
        _check_lfs(stream.read(_HEAD), path)


def _check_lfs(head: bytes, where: object) -> None:
    if head.startswith(_LFS_POINTER):
        raise DataError(
            "this file is a Git LFS pointer, not the data", where=where, fix="run git lfs pull in the repository"
        )


def _check_utf16(head: bytes, where: object, encoding: str) -> None:
    """Reject UTF-16 text, which is valid in other encodings, with a null character beside each letter."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    if codec(encoding).startswith(("utf-16", "utf-32")) or not head or 4 * (even + odd) < len(head):
        return
    likely = "utf-16-le" if odd > even else "utf-16-be"
    fix = f"set reports.encoding to that of the file, probably {likely} (--reports.encoding={likely})"
    raise DataError(
        f"many null characters: the file is not {encoding} text",
        where=where,
        fix=_encoding_hint(head) if head.startswith(_UTF16_MARKS) else fix,
    )


def _undecodable(data: bytes, where: object, encoding: str) -> DataError:
    position = "unknown position"
    try:
        data.decode(codec(encoding))
    except UnicodeDecodeError as error:
        start = error.start + (3 if codec(encoding) == "utf-8-sig" and data.startswith(codecs.BOM_UTF8) else 0)
        line_start = data.rfind(b"\n", 0, start) + 1
        line = data.count(b"\n", 0, start) + 1
        position = "end of file"
        if start < len(data):
            position = f"line {line}, byte {start - line_start + 1} (0x{data[start]:02x})"
    except UnicodeError:
        pass
    return DataError(f"the text is not valid {encoding}", where=f"{where}, {position}", fix=_encoding_hint(data))


def _encoding_hint(data: bytes) -> str:
    """Return advice on the encoding, from a byte order mark or the bytes that only some encodings use for letters."""
    if data.startswith(_UTF16_MARKS):
        return "set reports.encoding to utf-16 (from its byte order mark) (--reports.encoding=utf-16)"
    guess = "latin-1"
    if any(0x80 <= byte <= 0x9F for byte in data):  # control characters in latin-1
        try:
            data.decode("cp1252")
        except UnicodeDecodeError:
            return "set reports.encoding to that of the file (neither latin-1 nor cp1252), or convert the file to UTF-8"
        guess = "cp1252"
    return f"set reports.encoding to that of the file (--reports.encoding={guess}), or convert the file to UTF-8"


def read_lines(path: Path, encoding: str) -> Iterator[RawReport]:
    """Read one report per line of a text file."""
    with decoding(path, encoding), path.open(encoding=codec(encoding)) as stream:
        for number, line in enumerate(stream, 1):
            yield RawReport(f"{path}, line {number}", line.rstrip("\n"))


def read_texts(path: Path, encoding: str, problems: list[str]) -> Iterator[RawReport]:
    """Read one report per .txt file of a folder (including subfolders) or zip.

    The id is the file path without .txt. Other files, links to missing files and names that are not UTF-8 are counted
    in `problems`.

    Raises:
        DataError: A folder, file or zip member cannot be read or decoded, is longer than 16 MiB, or is a Git LFS
            pointer.
    """
    for name, data in _folder_texts(path, problems) if path.is_dir() else _zip_texts(path, problems):
        where = f"{path}, {name}"
        _check_lfs(data[:_HEAD], where)
        _check_utf16(data[:_HEAD], where, encoding)
        try:
            text = data.decode(codec(encoding))
        except UnicodeError as error:
            raise _undecodable(data, where, encoding) from error
        yield RawReport(where, text, name[: -len(".txt")])


def _folder_texts(path: Path, problems: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every .txt file of a folder, sorted by name."""
    found = list_files(path)
    for files, what in (
        (found.dangling, "links to missing files"),
        (found.undecodable, "files whose names are not UTF-8"),
    ):
        if files:
            problems.append(f"{path}: {len(files)} {what} skipped: {shortlist([f.relative_to(path) for f in files])}")
    for name in _text_names(path, [file.relative_to(path).as_posix() for file in found.files], problems):
        _check_size((path / name).stat().st_size, f"{path}, {name}")
        yield name, (path / name).read_bytes()


def _zip_texts(path: Path, problems: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every .txt member of a zip, sorted by name; backslashes are read as slashes."""
    reading = "its list of files"
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.replace("\\", "/"): info for info in archive.infolist()}
            if len(members) < len(archive.infolist()):
                raise DataError("two files of the zip have the same name", where=path, fix="repack the zip")
            names = _text_names(path, [name for name in members if not name.endswith("/")], problems)
            total = sum(members[name].file_size for name in names)
            if total > max(_SMALL_TOTAL, _LARGEST_RATIO * path.stat().st_size):
                raise DataError(
                    f"the texts of this zip take {total:,} bytes, over {_LARGEST_RATIO} times the size of the zip",
                    where=path,
                    fix="use a zip of reports; this one may be built to fill the memory",
                )
            for name in names:
                _check_size(members[name].file_size, f"{path}, {name}")
                reading = name
                yield name, archive.read(members[name])
    except PermissionError:
        raise
    except _DAMAGED as error:
        raise DataError(
            f"cannot read this zip file: {error or type(error).__name__}",
            where=f"{path}, {reading}",
            fix="copy it again, or unpack it and set reports.path to the folder",
        ) from error


def _check_size(size: int, where: str) -> None:
    if size > _LARGEST_TEXT:
        raise DataError(
            f"one report of {size:,} bytes (the limit is {_LARGEST_TEXT:,})",
            where=where,
            fix="remove this file; if it contains one report per line, set reports.path to it",
        )


def is_text(name: str) -> bool:
    """Return whether a file is read as a report: a .txt file in any letter case that is not hidden."""
    hidden = any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
    return name.lower().endswith(".txt") and not hidden


def _text_names(path: Path, names: Sequence[str], problems: list[str]) -> list[str]:
    """Select the names of reports, sorted; adds the number of skipped files to `problems`."""
    others = sorted(name for name in names if not is_text(name))
    if others:
        problems.append(f"{path}: {len(others)} other files skipped (not .txt), first {others[0]}")
    return sorted(name for name in names if is_text(name))
