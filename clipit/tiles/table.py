"""Tiles from a table (path, label, split, group, mpp, id) beside a folder or zip of images."""

import csv
import posixpath
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from clipit.config.run import TilesConfig
from clipit.errors import DataError, shortlist
from clipit.table_header import check_names, delimiter_hint
from clipit.tiles.readers import FileReader, Reader, ZipReader, file_stamp, zip_stamps
from clipit.tiles.source import SourceTiles

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class TileTable:
    """The columns of a table as text, and where its rows stand.

    Attributes:
        columns: Name -> one text per row.
        lines: Line of a text file in which each row starts; None: the file has rows, not lines.
    """

    columns: dict[str, list[str]]
    lines: list[int] | None = None

    def place(self, row: int) -> str:
        """How to call a row in a message: counted from 1, with its line in a text file."""
        return f"row {row + 1}" if self.lines is None else f"record {row + 1} (line {self.lines[row]})"


def read_columns(path: Path, config: TilesConfig) -> TileTable:
    """The columns that we know, by our names; absent optional ones are left out.

    `path` is needed; `label`, too, unless tiles.labels.kind is none; id, split, group and mpp are optional. One that
    tiles.columns names must be there.

    Raises:
        DataError: No such file, another format, not UTF-8, a row of the wrong length, or a missing column.
    """
    if not path.is_file():
        fix = "correct tiles.path"
        if "outputs" in path.parts:
            fix += (
                "; clipit writes what lies below outputs/ itself: first run the command that the head of the "
                "configuration names (make demo for the demo's world)"
            )
        raise DataError("the table of tiles is not there", where=path, fix=fix)
    if path.suffix.lower() == ".parquet":
        table = _read_parquet(path)
    elif path.suffix.lower() in _DELIMITERS:
        table = _read_text(path, _DELIMITERS[path.suffix.lower()])
    else:
        raise DataError("not a table that can be read", where=path, fix="use .csv, .tsv or .parquet")
    needed = {"path"} | set(config.columns) | ({"label"} if config.labels.kind != "none" else set())
    names = {ours: config.columns.get(ours, ours) for ours in ("id", "path", "label", "split", "group", "mpp")}
    given = table.columns
    missing = sorted(names[ours] for ours in needed if names[ours] not in given)
    if missing:
        raise DataError(
            f"missing columns: {', '.join(missing)}; the table has: {', '.join(given) or 'none'}",
            where=path,
            fix=delimiter_hint(list(given))
            or "name the right ones in tiles.columns, e.g. --tiles.columns.label=diagnosis",
        )
    columns = {ours: given[theirs] for ours, theirs in names.items() if theirs in given}
    if not columns["path"]:
        raise DataError("the table has no rows", where=path, fix="add a row per tile")
    return TileTable(columns, table.lines)


def _read_text(path: Path, delimiter: str) -> TileTable:
    body: list[list[str]] = []
    lines: list[int] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, delimiter=delimiter)
            header = [name.strip() for name in next(rows, [])]
            before = rows.line_num
            for row in rows:
                if row:
                    body.append(row)
                    lines.append(before + 1)
                before = rows.line_num
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8 text (byte {error.start} of a block)", where=path, fix="save the table as UTF-8"
        ) from error
    except csv.Error as error:
        raise DataError(f"not a readable table: {error}", where=path, fix="save it again as csv") from error
    check_names(header, path)
    bare = TileTable({}, lines)
    ragged = [row for row, values in enumerate(body) if len(values) != len(header)]
    if ragged:
        first = ragged[0]
        raise DataError(
            f"{bare.place(first)} has {len(body[first])} fields, the header {len(header)} ({len(ragged)} such rows)",
            where=path,
            fix=delimiter_hint(header) or "quote fields that contain the delimiter",
        )
    return replace(bare, columns={name: [values[at].strip() for values in body] for at, name in enumerate(header)})


def _read_parquet(path: Path) -> TileTable:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"not a readable parquet file: {error}", where=path, fix="write it again") from error
    check_names(table.column_names, path)
    return TileTable(
        {
            name: ["" if value is None else str(value).strip() for value in table.column(name).to_pylist()]
            for name in table.column_names
        }
    )


def read_table(config: TilesConfig) -> SourceTiles:
    """Tiles of a table; the id of a tile is its `id` column, or else its path.

    Raises:
        DataError: The table is not readable or contradictory, or names files that are not there.
    """
    path = Path(config.path).expanduser()
    table = read_columns(path, config)
    columns = table.columns
    files = [posixpath.normpath(name.replace("\\", "/")) if name else "" for name in columns["path"]]
    _check_files(path, files, table)
    images = Path(config.images).expanduser() if config.images else path.parent
    reader, stamps = _open_images(images, files, path)
    empty = [""] * len(files)
    return SourceTiles(
        ids=_ids(path, columns.get("id", files), table),
        labels=columns.get("label", empty),
        parts=columns.get("split", empty),
        groups=columns.get("group", empty),
        mpp=_numbers(path, columns.get("mpp", empty), table),
        stamps=stamps,
        reader=reader,
        where=str(path),
    )


def _check_files(path: Path, files: list[str], table: TileTable) -> None:
    nameless = [row for row, name in enumerate(files) if not name]
    if nameless:
        raise DataError(
            f"{len(nameless)} rows name no file, first {table.place(nameless[0])}",
            where=path,
            fix="fill in the path or remove the rows",
        )
    twice = [name for name, count in Counter(files).items() if count > 1]
    if twice:
        rows = [table.place(row) for row, name in enumerate(files) if name == twice[0]]
        raise DataError(
            f"{len(twice)} files are named more than once: {shortlist(twice)}; {twice[0]} in {shortlist(rows)}",
            where=path,
            fix="keep one row per file",
        )


def _ids(path: Path, ids: list[str], table: TileTable) -> list[str]:
    wrong = [table.place(row) for row, name in enumerate(ids) if not name]
    if wrong:
        raise DataError(f"tiles without an id: {shortlist(wrong)}", where=path, fix="fill in the id column")
    return ids


def _open_images(images: Path, files: list[str], table: Path) -> tuple[Reader, list[str]]:
    """The reader of the files and a stamp for each."""
    if images.is_file():
        members = zip_stamps(images)
        _complain_if_missing([name for name in files if name not in members], len(files), images, table)
        return ZipReader(images, files), [members[name] for name in files]
    if not images.is_dir():
        raise DataError("the folder or zip with the images is not there", where=images, fix="correct tiles.images")
    stamps: list[str] = []
    missing: list[str] = []
    for name in files:
        try:
            stamps.append(file_stamp(images / name))
        except PermissionError:
            raise
        except (OSError, ValueError):  # not there; or too long or with a NUL for any file to be called so
            missing.append(name)
    _complain_if_missing(missing, len(files), images, table)
    return FileReader(images, files), stamps


def _complain_if_missing(missing: list[str], total: int, images: Path, table: Path) -> None:
    if missing:
        raise DataError(
            f"{len(missing)} of {total} files that the table names are not there: {shortlist(missing)}",
            where=f"{table}, looked for in {images}",
            fix="set tiles.images to the folder or zip that the paths are relative to, or remove the rows",
        )


def _numbers(path: Path, values: list[str], table: TileTable) -> list[float]:
    numbers: list[float] = []
    for row, value in enumerate(values):
        try:
            number = float(value) if value else float("nan")
        except ValueError:
            number = -1.0
        if number <= 0 or number == float("inf"):
            raise DataError(
                f"mpp is '{value}' in {table.place(row)}",
                where=path,
                fix="give micrometres per pixel as a positive number, or leave it empty",
            )
        numbers.append(number)
    return numbers
