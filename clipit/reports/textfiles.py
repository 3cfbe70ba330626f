"""Read plain-text reports: one per line, or one per file of a folder or zip."""

import codecs
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from clipit.errors import ConfigError, DataError


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
        ConfigError: The encoding is unknown.
    """
    try:
        name = codecs.lookup(encoding).name
    except LookupError as error:
        raise ConfigError(
            f"unknown encoding {encoding!r}", where="reports.encoding", fix="use utf-8, latin-1 or cp1252"
        ) from error
    return "utf-8-sig" if name == "utf-8" else name


@contextmanager
def decoding(path: Path, encoding: str) -> Iterator[None]:
    """Convert a decoding error within the block into a `DataError` that names file, line and byte."""
    try:
        yield
    except UnicodeError as error:
        raise _undecodable(path.read_bytes(), path, encoding) from error


def _undecodable(data: bytes, where: object, encoding: str) -> DataError:
    try:
        data.decode(codec(encoding))
        position = "unknown position"
    except UnicodeDecodeError as error:
        start = error.start + (3 if codec(encoding) == "utf-8-sig" and data.startswith(codecs.BOM_UTF8) else 0)
        line_start = data.rfind(b"\n", 0, start) + 1
        line = data.count(b"\n", 0, start) + 1
        position = "end of file"
        if start < len(data):
            position = f"line {line}, byte {start - line_start + 1} (0x{data[start]:02x})"
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    actual, example = ("utf-16 (from its byte order mark)", "utf-16") if utf16 else ("that of the file", "latin-1")
    return DataError(
        f"the text is not valid {encoding}",
        where=f"{where}, {position}",
        fix=f"set reports.encoding to {actual} (--reports.encoding={example}), or convert the file to UTF-8",
    )


def read_lines(path: Path, encoding: str) -> Iterator[RawReport]:
    """Read one report per line of a text file."""
    with decoding(path, encoding), path.open(encoding=codec(encoding)) as stream:
        for number, line in enumerate(stream, 1):
            yield RawReport(f"{path}, line {number}", line.rstrip("\n"))


def read_texts(path: Path, encoding: str, problems: list[str]) -> Iterator[RawReport]:
    """Read one report per .txt file of a folder (including subfolders) or zip.

    The id is the file path without .txt; the number of other files is added to `problems`.
    """
    for name, data in _text_files(path, problems):
        where = f"{path}, {name}"
        try:
            text = data.decode(codec(encoding))
        except UnicodeError as error:
            raise _undecodable(data, where, encoding) from error
        yield RawReport(where, text, name[: -len(".txt")])


def _text_files(path: Path, problems: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every .txt file, sorted by name."""
    if path.is_dir():
        for name in _text_names(
            path, [f.relative_to(path).as_posix() for f in path.rglob("*") if f.is_file()], problems
        ):
            yield name, (path / name).read_bytes()
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for name in _text_names(path, [n for n in archive.namelist() if not n.endswith("/")], problems):
                yield name, archive.read(name)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:  # RuntimeError: encrypted
        raise DataError(
            f"cannot read this zip file: {error}", where=path, fix="copy it again, or unpack it and give the folder"
        ) from error


def _text_names(path: Path, names: list[str], problems: list[str]) -> list[str]:
    """Select the names of .txt files that are not hidden, sorted; adds the number of skipped files to `problems`."""
    texts: list[str] = []
    others: list[str] = []
    for name in sorted(names):
        hidden = any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
        (texts if name.lower().endswith(".txt") and not hidden else others).append(name)
    if others:
        problems.append(f"{path}: {len(others)} other files skipped (not .txt), first {others[0]}")
    return texts
