"""Read plain-text reports: one per line, or one per file in a folder or zip."""

import lzma
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from clipit.errors import DataError, counted, counted_of, is_limit, repeats, shortlist
from clipit.input_files.csv_tables import without_end_mark
from clipit.input_files.folder_files import hidden_names, hidden_note, is_hidden, list_files
from clipit.input_files.zip_files import COMPRESSED_SUFFIXES, member_name, open_zip
from clipit.reports.encodings import CONVERT, DOCUMENTS, check_head, codec, decoding, decoding_error

_TEXT = ".txt"
_MAX_TEXT_BYTES = 16 * 2**20  # maximum size of one report in bytes; larger files are other data, or zip bombs
# A zip whose unpacked size exceeds both limits is rejected; text compresses to a tenth, rarely to a hundredth.
_MAX_RATIO, _SMALL_TOTAL = 200, 256 * 2**20  # unpacked size relative to the zip, and in bytes
_MAX_EMPTY_BYTES = 64  # maximum compressed size of an empty file, with any compression method
_SEPARATORS = {
    "\0": "null character",
    "\r": "carriage return",
    "\v": "vertical tab",
    "\f": "form feed",
    "\x1c": "file separator",
    "\x1d": "group separator",
    "\x1e": "record separator",
    "\x85": "next line",
    "\u2028": "line separator",
    "\u2029": "paragraph separator",
}
_SEPARATOR = re.compile(f"[{''.join(_SEPARATORS)}]")
_TABLE_FORMATS = {"\t": "tsv", ",": "csv", ";": "csv"}  # by delimiter
_COLUMN_NAME = re.compile(r"\s*\"?[^\W\d]+\"?\s*")
_KNOWN_COLUMN = re.compile(r"(?i)\W*(?:\w+_)?(?:id|text|report|patient|case|group|label|organ|date)\W*")
_MIN_ROWS = 3  # minimum number of lines with equal numbers of tabs in a table
_DAMAGED = (
    zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError, ValueError, struct.error, zlib.error,
    lzma.LZMAError,
)  # fmt: skip
"""Exceptions that zipfile raises for damaged members; RuntimeError is also raised for encrypted members."""


class RawReport(NamedTuple):
    """Report as read from its source, before an id is assigned."""

    where: str
    """File and row, for error messages."""
    text: str
    report_id: str | None = None
    organ: str | None = None
    group: str | None = None
    label: str | None = None
    date: str | None = None
    names: tuple[str, ...] = ()
    """Cells of the row that contain a TCGA barcode or project."""


def read_lines(path: Path, encoding: str, problems: list[str]) -> Iterator[RawReport]:
    """Read one report per line of a text file.

    Lines with characters that other programs read as the end of a line or report are counted in `problems`. A carriage
    return ends a line only if the file has no line feed.

    Raises:
        DataError: The text cannot be decoded, or the file is a table or a single line that contains such characters.
    """
    counts: Counter[str] = Counter()
    tabs: set[int] = set()
    lines = affected = 0
    with decoding(path, encoding) as name, path.open(encoding=name, newline="\n") as stream:
        for number, report in enumerate(text_lines(stream), 1):
            if report.strip():
                _check_no_header(report if not lines else "", f"{path}, line {number}")
                tabs.add(report.count("\t"))
            separators = _SEPARATOR.findall(report.strip())
            counts.update(separators)
            lines, affected = lines + bool(report.strip()), affected + any(char != "\0" for char in separators)
            yield RawReport(f"{path}, line {number}", report)
    if lines >= _MIN_ROWS and len(tabs) == 1 and 0 not in tabs:
        raise DataError(
            f"every line contains {counted(tabs.pop(), 'tab')}: the file is a table, not one report per line",
            where=path,
            fix="set reports.format to tsv (--reports.format=tsv), or replace the tabs with spaces",
        )
    if lines == 1 and counts:
        listed = _list_separators(counts)
        raise DataError(
            f"the file is a single line, with characters that may separate reports ({listed})",
            where=path,
            fix="replace them with line breaks or, if the file is one report, set reports.path to its folder",
        )
    del counts["\0"]  # null characters are listed per report, for all formats
    if not counts:
        return
    problems.append(
        f"{path}: {counted_of(affected, lines, 'line contains', 'lines contain')} characters that other programs read "
        f"as the end of a line or report ({_list_separators(counts)}); each line was read as one report"
    )


def _check_no_header(line: str, where: str) -> None:
    """Check that the first line of a text is not the header of a table, such as `id,text`.

    Raises:
        DataError: The line consists of column names, and at least two of them are common ones.
    """
    for delimiter in (*_TABLE_FORMATS, "|"):
        names = line.split(delimiter)
        if all(map(_COLUMN_NAME.fullmatch, names)) and sum(map(bool, map(_KNOWN_COLUMN.fullmatch, names))) > 1:
            format_name = _TABLE_FORMATS.get(delimiter)
            raise DataError(
                f"the first line is the header of a table, not a report: {shortlist([line.strip()])}",
                where=where,
                fix=f"set reports.path to this file, and reports.format to {format_name}"
                if format_name
                else "save the table as comma-separated .csv",
            )


def _list_separators(counts: Counter[str]) -> str:
    return ", ".join(f"{count} x {_SEPARATORS[char]}" for char, count in counts.most_common())


def text_lines(stream: Iterable[str]) -> Iterator[str]:
    r"""Yield the lines of a text file that was opened with `newline="\n"`, without line endings.

    Lines end in a line feed, after any number of carriage returns. In a file without line feeds, as written on classic
    Mac OS, they end in a carriage return.
    """
    for number, line in enumerate(without_end_mark(stream)):
        if number == 0 and not line.endswith("\n"):
            yield from line.removesuffix("\r").split("\r")
        else:
            yield line.rstrip("\r\n")


def read_texts(path: Path, encoding: str, problems: list[str]) -> Iterator[RawReport]:
    """Read one report per .txt file in a folder (including subfolders) or zip.

    The id is the file path without .txt. Other files, links to missing files and names that are not UTF-8 are counted
    in `problems`.

    Raises:
        DataError: A folder, file or zip member cannot be read or decoded, is larger than 16 MiB, or is a Git LFS
            pointer.
    """
    for name, data in _folder_texts(path, problems) if path.is_dir() else _zip_texts(path, problems):
        where = f"{path}, {name}"
        check_head(data, where, encoding)
        try:
            text = "".join(without_end_mark([data.decode(codec(data, encoding))]))
        except UnicodeError as error:
            raise decoding_error(data, where, encoding) from error
        _check_no_header(text.lstrip().partition("\n")[0], where)
        yield RawReport(where, text, name[: -len(_TEXT)])


def _folder_texts(path: Path, problems: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of every .txt file of a folder, sorted by name."""
    listed = list_files(path)
    for files, singular, plural in (
        (listed.dangling, "link to a missing file", "links to missing files"),
        (listed.undecodable, "file whose name is not UTF-8", "files whose names are not UTF-8"),
        (listed.repeated, "link to a folder also read elsewhere", "links to folders also read elsewhere"),
    ):
        if files:
            shown = shortlist([file.relative_to(path) for file in files])
            problems.append(f"{path}: {counted(len(files), singular, plural)} skipped: {shown}")
    hidden = hidden_names(listed, path, lambda file: file.suffix.lower() == _TEXT)
    for name in _text_names(path, [file.relative_to(path).as_posix() for file in listed.files], hidden, problems):
        _check_size((path / name).stat().st_size, f"{path}, {name}")
        yield name, (path / name).read_bytes()


def _zip_texts(path: Path, problems: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of every .txt member of a zip, sorted by name; backslashes are read as slashes."""
    members = zip_members(path)
    files = [name for name in members if not name.endswith("/")]
    hidden = sorted(name for name in files if name.lower().endswith(_TEXT) and not is_text(name))
    names = _text_names(path, files, hidden, problems)
    total = sum(members[name].file_size for name in names)
    if total > max(_SMALL_TOTAL, _MAX_RATIO * path.stat().st_size):
        raise DataError(
            f"the texts in this zip take {total:,} bytes when unpacked, over {_MAX_RATIO} times the size of the zip",
            where=path,
            fix="use a zip of reports; this one may be a zip bomb",
        )
    with zipfile.ZipFile(path) as archive:
        for name in names:
            where = f"{path}, {name}"
            _check_size(members[name].file_size, where)
            with _zip_errors(where):
                data = archive.read(members[name])
                _check_read(data, members[name])
            yield name, data


def _check_read(data: bytes, member: zipfile.ZipInfo) -> None:
    """Check that a member was read completely; zipfile does not verify the checksum if it finds no data.

    Raises:
        BadZipFile: The size of the data differs from the size in the zip's central directory.
    """
    if len(data) != member.file_size or (not data and member.compress_size > _MAX_EMPTY_BYTES):
        raise zipfile.BadZipFile(f"{counted(len(data), 'byte')} found, {member.file_size} expected")


def zip_members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the members of a zip by name, with backslashes replaced by slashes.

    Raises:
        DataError: The zip is damaged, or two members have the same name.
    """
    with _zip_errors(path), open_zip(path) as archive:
        infos = archive.infolist()
    names = list(map(member_name, infos))
    if repeated := repeats(names, lambda number: f"entry {number + 1}"):
        problem = f"two files in the zip have the same name: {shortlist(repeated, 3)}"
        raise DataError(problem, where=path, fix="repack the zip")
    return dict(zip(names, infos, strict=True))


@contextmanager
def _zip_errors(where: object) -> Iterator[None]:
    """Convert zip errors raised within the block into a `DataError`."""
    try:
        yield
    except PermissionError:
        raise
    except _DAMAGED as error:
        if is_limit(error):
            raise
        raise DataError(
            f"cannot read this zip file: {error or type(error).__name__}",
            where=where,
            fix="copy it again, or unpack it and set reports.path to the folder",
        ) from error


def _check_size(size: int, where: str) -> None:
    if size > _MAX_TEXT_BYTES:
        raise DataError(
            f"the report takes {size:,} bytes (the limit is {_MAX_TEXT_BYTES:,})",
            where=where,
            fix="remove this file; if it contains one report per line, set reports.path to it",
        )


def is_text(name: str) -> bool:
    """Return whether a file is read as a report: a .txt file (suffix in any letter case) that is not hidden."""
    return name.lower().endswith(_TEXT) and not is_hidden(name)


def _text_names(path: Path, names: Sequence[str], hidden: Sequence[str], problems: list[str]) -> list[str]:
    """Select the names of reports, sorted, and add the numbers of hidden reports and other files to `problems`.

    Raises:
        DataError: There are only documents that must be converted, or files that must be decompressed.
    """
    texts = sorted(name for name in names if is_text(name))
    others = sorted(name for name in names if not name.lower().endswith(_TEXT))
    documents = [name for name in others if PurePosixPath(name).suffix.lower() in DOCUMENTS]
    packed = [name for name in others if name.lower().endswith(COMPRESSED_SUFFIXES)]
    if documents and not texts:
        listed = f"{counted(len(documents), 'document')} such as {documents[0]}"
        raise DataError(f"no .txt files, but {listed}", where=path, fix=CONVERT)
    if packed and not texts:
        listed = f"{counted(len(packed), 'compressed file')} such as {packed[0]}"
        raise DataError(f"no .txt files, but {listed}", where=path, fix="decompress them, for example with 7-Zip")
    problems += [f"{path}: {note}" for note in hidden_note(hidden, "report")]
    if others:
        problems.append(f"{path}: {counted(len(others), 'other file')} skipped (not .txt), such as {others[0]}")
    return texts
