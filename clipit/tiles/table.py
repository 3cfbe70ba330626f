"""A table (path, label, split, group, mpp, id) over a folder or a zip of images."""

import posixpath
from collections import Counter
from pathlib import Path

from clipit.config.run import TilesConfig
from clipit.errors import DataError, explain, shortlist
from clipit.tiles.readers import FileReader, Reader, ZipReader, file_stamp, zip_stamps
from clipit.tiles.source import SourceTiles
from clipit.tiles.table_file import TileTable, read_columns


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
            explain(
                f"{len(nameless)} rows name no file, first {table.place(nameless[0])}",
                where=path,
                fix="fill in the path or remove the rows",
            )
        )
    twice = [name for name, count in Counter(files).items() if count > 1]
    if twice:
        rows = [table.place(row) for row, name in enumerate(files) if name == twice[0]]
        raise DataError(
            explain(
                f"{len(twice)} files are named more than once: {shortlist(twice)}; {twice[0]} in {shortlist(rows)}",
                where=path,
                fix="keep one row per file",
            )
        )


def _ids(path: Path, ids: list[str], table: TileTable) -> list[str]:
    wrong = [table.place(row) for row, name in enumerate(ids) if not name]
    if wrong:
        raise DataError(explain(f"tiles without an id: {shortlist(wrong)}", where=path, fix="fill in the id column"))
    return ids


def _open_images(images: Path, files: list[str], table: Path) -> tuple[Reader, list[str]]:
    """The reader of the files and a stamp for each."""
    if images.is_file():
        members = zip_stamps(images)
        _complain_if_missing([name for name in files if name not in members], len(files), images, table)
        return ZipReader(images, files), [members[name] for name in files]
    if not images.is_dir():
        raise DataError(
            explain("the folder or zip with the images is not there", where=images, fix="correct tiles.images")
        )
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
            explain(
                f"{len(missing)} of {total} files that the table names are not there: {shortlist(missing)}",
                where=f"{table}, looked for in {images}",
                fix="set tiles.images to the folder or zip that the paths are relative to, or remove the rows",
            )
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
                explain(
                    f"mpp is '{value}' in {table.place(row)}",
                    where=path,
                    fix="give micrometres per pixel as a positive number, or leave it empty",
                )
            )
        numbers.append(number)
    return numbers
