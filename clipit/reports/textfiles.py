"""Reports in plain text."""

import codecs
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from clipit.config.run import ReportsConfig
from clipit.errors import ConfigError, DataError


class Row(NamedTuple):
    """A report as its source gives it."""

    where: str
    """File and row, for messages."""
    text: str
    report_id: str | None = None
    organ: str | None = None
    group: str | None = None
    label: str | None = None


def needed_columns(config: ReportsConfig) -> dict[str, str]:
    """Key of the configuration -> column, for those that are configured."""
    keys = ("text_column", "id_column", "organ_column", "group_column", "label_column")
    return {key: getattr(config, key) for key in keys if getattr(config, key) is not None}


def check_columns(config: ReportsConfig, columns: Sequence[str], where: object, hint: str = "") -> None:
    """Compare the configured columns with those of the table; `hint` says what to do when they are not there.

    Raises:
        DataError: One of them is not there; names the columns that are.
    """
    for key, column in needed_columns(config).items():
        if column not in columns:
            raise DataError(
                f"no column {column!r}; the columns are: {', '.join(map(repr, columns)) or 'none'}",
                where=where,
                fix=hint or f"set reports.{key} to one of them (--reports.{key}=...)",
            )


def _plain(value: Any) -> str | None:
    """A cell of an id, organ or group column as a string; None if it is empty."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value).strip() or None


def table_row(config: ReportsConfig, cells: Mapping[str, Any], where: str) -> Row:
    """A row from the cells of a table.

    Raises:
        DataError: The text is no text, or the id is missing.
    """
    text = cells.get(config.text_column)
    if text is None or (isinstance(text, float) and math.isnan(text)):
        text = ""
    if not isinstance(text, str):
        raise DataError(
            f"column {config.text_column!r} holds {type(text).__name__}, not text",
            where=where,
            fix="set reports.text_column to the column with the reports' text",
        )
    report_id = _plain(cells.get(config.id_column)) if config.id_column else None
    if config.id_column and report_id is None:
        raise DataError(
            f"no id in column {config.id_column!r}", where=where, fix="fill it in, or leave reports.id_column out"
        )
    organ = _plain(cells.get(config.organ_column)) if config.organ_column else None
    group = _plain(cells.get(config.group_column)) if config.group_column else None
    label = _plain(cells.get(config.label_column)) if config.label_column else None
    return Row(where, text, report_id, organ, group, label)


def codec(encoding: str) -> str:
    """The encoding to open files with; UTF-8 also passes over a byte order mark.

    Raises:
        ConfigError: There is no such encoding.
    """
    try:
        name = codecs.lookup(encoding).name
    except LookupError as error:
        raise ConfigError(
            f"unknown encoding {encoding!r}", where="reports.encoding", fix="use utf-8, latin-1 or cp1252"
        ) from error
    return "utf-8-sig" if name == "utf-8" else name


def _undecodable(data: bytes, where: object, encoding: str) -> DataError:
    """Find the first byte that does not belong to the encoding, and say where it stands."""
    try:
        data.decode(codec(encoding))
        place = "somewhere"
    except UnicodeDecodeError as error:
        start = error.start + (3 if codec(encoding) == "utf-8-sig" and data.startswith(codecs.BOM_UTF8) else 0)
        line_start = data.rfind(b"\n", 0, start) + 1
        line = data.count(b"\n", 0, start) + 1
        place = f"line {line}, byte {start - line_start + 1} (0x{data[start]:02x})" if start < len(data) else "the end"
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    own = "utf-16, by its first bytes" if wide else "the file's own"
    example = "utf-16" if wide else "latin-1"
    return DataError(
        f"the text is not {encoding}",
        where=f"{where}, {place}",
        fix=f"set reports.encoding to {own} (--reports.encoding={example}), or convert the file to UTF-8",
    )


@contextmanager
def decoding(path: Path, encoding: str) -> Iterator[None]:
    """Turn a decoding error within the block into one that names file, line and byte."""
    try:
        yield
    except UnicodeError as error:
        raise _undecodable(path.read_bytes(), path, encoding) from error


def read_lines(path: Path, encoding: str) -> Iterator[Row]:
    """One report per line of a text file."""
    with decoding(path, encoding), path.open(encoding=codec(encoding)) as stream:
        for number, line in enumerate(stream, 1):
            yield Row(f"{path}, line {number}", line.rstrip("\n"))


def _wanted(name: str) -> bool:
    """Whether a file is a report, and not the hidden file of an operating system."""
    parts = PurePosixPath(name).parts
    return name.lower().endswith(".txt") and not any(part.startswith((".", "__MACOSX")) for part in parts)


def _files(path: Path, problems: list[str]) -> Iterator[tuple[str, bytes]]:
    """Name and content of every report file of a folder or zip, by name."""
    if path.is_dir():
        names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        _note_others(path, names, problems)
        for name in filter(_wanted, names):
            yield name, (path / name).read_bytes()
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if not name.endswith("/"))
            _note_others(path, names, problems)
            for name in filter(_wanted, names):
                yield name, archive.read(name)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:  # RuntimeError: encrypted
        raise DataError(
            f"cannot read this zip file: {error}", where=path, fix="copy it again, or unpack it and give the folder"
        ) from error


def _note_others(path: Path, names: list[str], problems: list[str]) -> None:
    others = [name for name in names if not _wanted(name)]
    if others:
        problems.append(f"{path}: {len(others)} other files passed over (not .txt), the first is {others[0]}")


def read_texts(path: Path, encoding: str, problems: list[str]) -> Iterator[Row]:
    """One report per .txt file of a folder (with its subfolders) or of a zip; the id is its path without .txt."""
    for name, data in _files(path, problems):
        where = f"{path}, {name}"
        try:
            text = data.decode(codec(encoding))
        except UnicodeError as error:
            raise _undecodable(data, where, encoding) from error
        yield Row(where, text, name[: -len(".txt")])
