"""Read tiles from a table (path, label, split, group, mpp, id) beside a folder or zip of images."""

import posixpath
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from clipit.config.run import TilesConfig
from clipit.data_files import check_column_names, delimiter_hint, read_csv
from clipit.errors import DataError, shortlist
from clipit.tiles.readers import FileReader, Reader, ZipReader, file_stamp, zip_stamps
from clipit.tiles.source import SourceTiles

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class _Table:
    """Columns of a table as text, and the line in which each row starts (None for parquet)."""

    columns: dict[str, list[str]]
    lines: list[int] | None = None

    def place(self, row: int) -> str:
        """Return the name of a row for error messages, counted from 1."""
        return f"row {row + 1}" if self.lines is None else f"record {row + 1} (line {self.lines[row]})"


def read_table(config: TilesConfig) -> SourceTiles:
    """Read tiles from a table; the id of a tile is its `id` column, or else its path.

    Raises:
        DataError: The table cannot be read or is inconsistent, or files that it names are missing.
    """
    path = Path(config.path).expanduser()
    table = _read_columns(path, config)
    columns = table.columns
    files = [posixpath.normpath(name.replace("\\", "/")) if name else "" for name in columns["path"]]
    _check_files(path, files, table)
    images = Path(config.images).expanduser() if config.images else path.parent
    reader, stamps = _open_images(images, files, path)
    empty = [""] * len(files)
    ids = columns.get("id", files)
    without_id = [table.place(row) for row, name in enumerate(ids) if not name]
    if without_id:
        raise DataError(f"tiles without an id: {shortlist(without_id)}", where=path, fix="fill in the id column")
    return SourceTiles(
        ids=ids,
        labels=columns.get("label", empty),
        parts=columns.get("split", empty),
        groups=columns.get("group", empty),
        mpp=_parse_mpp(path, columns.get("mpp", empty), table),
        stamps=stamps,
        reader=reader,
        where=str(path),
    )


def _read_columns(path: Path, config: TilesConfig) -> _Table:
    """Read the columns that describe tiles, under our names.

    `path` is required, and so is `label` unless tiles.labels.kind is none; the others (id, split, group, mpp) are
    optional unless tiles.columns names them.
    """
    if not path.is_file():
        fix = "correct tiles.path"
        if "outputs" in path.parts:
            fix += (
                "; clipit writes the files below outputs/ itself: first run the command that the head of the "
                "configuration names (make demo for the demo's world)"
            )
        raise DataError("the table of tiles does not exist", where=path, fix=fix)
    suffix = path.suffix.lower()
    if suffix != ".parquet" and suffix not in _DELIMITERS:
        raise DataError("unknown table format", where=path, fix="use .csv, .tsv or .parquet")
    table = _read_parquet(path) if suffix == ".parquet" else _read_text(path, _DELIMITERS[suffix])
    required = {"path"} | set(config.columns) | ({"label"} if config.labels.kind != "none" else set())
    names = {ours: config.columns.get(ours, ours) for ours in ("id", "path", "label", "split", "group", "mpp")}
    missing = sorted(names[ours] for ours in required if names[ours] not in table.columns)
    if missing:
        raise DataError(
            f"missing columns: {', '.join(missing)}; the table has: {', '.join(table.columns) or 'none'}",
            where=path,
            fix=delimiter_hint(list(table.columns))
            or "name the right ones in tiles.columns, e.g. --tiles.columns.label=diagnosis",
        )
    columns = {ours: table.columns[theirs] for ours, theirs in names.items() if theirs in table.columns}
    if not columns["path"]:
        raise DataError("the table has no rows", where=path, fix="add a row per tile")
    return _Table(columns, table.lines)


def _read_text(path: Path, delimiter: str) -> _Table:
    try:
        table = read_csv(path, delimiter)
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8 text (byte {error.start} of a block)", where=path, fix="save the table as UTF-8"
        ) from error
    columns = {name.strip(): [row[i].strip() for row in table.rows] for i, name in enumerate(table.header)}
    return _Table(columns, table.lines)


def _read_parquet(path: Path) -> _Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"not a readable parquet file: {error}", where=path, fix="write it again") from error
    check_column_names(table.column_names, path)
    return _Table(
        {
            name: ["" if value is None else str(value).strip() for value in table.column(name).to_pylist()]
            for name in table.column_names
        }
    )


def _check_files(path: Path, files: list[str], table: _Table) -> None:
    nameless = [row for row, name in enumerate(files) if not name]
    if nameless:
        raise DataError(
            f"{len(nameless)} rows name no file, first {table.place(nameless[0])}",
            where=path,
            fix="fill in the path or remove the rows",
        )
    repeated = [name for name, count in Counter(files).items() if count > 1]
    if repeated:
        rows = [table.place(row) for row, name in enumerate(files) if name == repeated[0]]
        raise DataError(
            f"{len(repeated)} files occur more than once: {shortlist(repeated)}; {repeated[0]} in {shortlist(rows)}",
            where=path,
            fix="keep one row per file",
        )


def _open_images(images: Path, files: list[str], table: Path) -> tuple[Reader, list[str]]:
    """Open a reader of the files, and compute a stamp for each file."""
    if images.is_file():
        stamp_of = zip_stamps(images)
        _raise_missing([name for name in files if name not in stamp_of], len(files), images, table)
        return ZipReader(images, files), [stamp_of[name] for name in files]
    if not images.is_dir():
        raise DataError("the folder or zip with the images does not exist", where=images, fix="correct tiles.images")
    stamps: list[str] = []
    missing: list[str] = []
    for name in files:
        try:
            stamps.append(file_stamp(images / name))
        except PermissionError:
            raise
        except (OSError, ValueError):  # missing, or an invalid file name: too long, or with a NUL
            missing.append(name)
    _raise_missing(missing, len(files), images, table)
    return FileReader(images, files), stamps


def _raise_missing(missing: list[str], total: int, images: Path, table: Path) -> None:
    if missing:
        raise DataError(
            f"{len(missing)} of {total} files that the table names are missing: {shortlist(missing)}",
            where=f"{table}, images in {images}",
            fix="set tiles.images to the folder or zip that the paths are relative to, or remove the rows",
        )


def _parse_mpp(path: Path, values: list[str], table: _Table) -> list[float]:
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
