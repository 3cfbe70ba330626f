"""Read tiles from a table (path, label, split, group, mpp, id) and a folder or zip of images."""

import os
import posixpath
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from clipit.config.run import LabelsConfig, TilesConfig
from clipit.errors import DataError, counted, repeats, shortlist
from clipit.images.decode import is_image
from clipit.images.image_files import dangling_links, image_stamps
from clipit.images.image_readers import FileReader, ZipReader, file_stamp, zip_stamps
from clipit.images.image_set import ImageSet
from clipit.input_files.csv_tables import check_column_names, read_utf8_csv
from clipit.input_files.data_files import MISSING_VALUES
from clipit.input_files.git_lfs import check_pointer
from clipit.input_files.mangled_names import check_exact, check_rounded
from clipit.input_files.nearby_files import similar_names
from clipit.input_files.parquet_classes import class_names, name_class
from clipit.input_files.spelling import check_column_spelling
from clipit.input_files.zip_files import check_uncompressed
from clipit.tiles.cells import parse_mpp, read_cells, resolve_missing
from clipit.tiles.groups import is_group_column
from clipit.tiles.missing_files import files_below, missing_files, normalise, spelled_in_zip, spelled_on_disk
from clipit.tiles.source import SourceTiles
from clipit.tiles.split_columns import split_notes

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_KEY = "tiles.path"
TABLES = (*_DELIMITERS, ".parquet")
"""Suffixes of tables."""
WORKBOOKS = (".xlsx", ".xls", ".ods")
"""Suffixes of spreadsheets, which are rejected with a hint."""
_UNLABELLED = "; if no tile is labelled, add an empty `label` column, or set tiles.labels.kind: none"


@dataclass(frozen=True)
class TileTable:
    """Table in any format."""

    names: Sequence[str]
    """Column names."""
    column: Callable[[str], Sequence[Any]]
    """Function that returns the cells of a column."""
    lines: list[int] | None = None
    """First line of each row in the file; None for parquet."""
    hint: Callable[[Collection[str]], str] = lambda wanted: ""
    """Function that returns advice if columns are missing because of the header or delimiter (see `layout_hint`)."""

    def row_name(self, row: int) -> str:
        """Return the name of a row for error messages, numbered from 1."""
        return f"row {row + 1}" if self.lines is None else f"record {row + 1} (line {self.lines[row]})"


def read_table(config: TilesConfig) -> SourceTiles:
    """Read tiles from a table; tile ids come from the column `id` if there is one, otherwise from the path.

    Raises:
        DataError: The table cannot be read or is inconsistent, or files are missing.
    """
    path = Path(config.path).expanduser()
    table = open_table(path)
    columns = read_columns(path, config, table, ("id", "path", "label", "split", "group", "mpp"))
    located = _locate(path, config, table, columns)
    empty = [""] * len(located)
    labels, label_notes = resolve_missing(columns.get("label", empty), "label", config, path, table.row_name)
    groups, group_notes = resolve_missing(columns.get("group", empty), "group", config, path, table.row_name)
    return SourceTiles(
        ids=located.ids,
        labels=labels,
        source_splits=columns.get("split", empty),
        groups=groups,
        mpp=parse_mpp(columns.get("mpp", empty), path, table.row_name),
        stamps=located.stamps,
        reader=located.reader,
        where=str(path),
        notes=(*label_notes, *group_notes, *_split_notes(table, columns)),
        paths=columns["path"],
        columns=group_columns(path, table, config),
    )


def table_images(
    path: Path, images: Path | None = None, path_column: str | None = None, id_column: str | None = None
) -> ImageSet:
    """Return the images listed in a table, reading only its path, id and `mpp` columns.

    Args:
        images: Folder or zip that the paths are relative to; None for the folder of the table.
        path_column: Name of the path column; None for `path`.
        id_column: Name of the id column; None for `id`. If there is no such column, the paths are the ids.

    Raises:
        DataError: The table cannot be read or is inconsistent, or files are missing.
    """
    columns: dict[Literal["id", "path", "label", "split", "group", "mpp"], str] = {}
    if path_column:
        columns["path"] = path_column
    if id_column:
        columns["id"] = id_column
    config = TilesConfig(
        source="table",
        path=str(path),
        images=str(images) if images else None,
        columns=columns,
        labels=LabelsConfig(kind="none"),
        unreadable="quarantine",
    )
    table = open_table(path, "the path")
    cells = read_columns(path, config, table, ("id", "path", "mpp"))
    mpp = parse_mpp(cells["mpp"], path, table.row_name) if "mpp" in cells else ()
    return replace(_locate(path, config, table, cells), mpp=mpp)


def _locate(path: Path, config: TilesConfig, table: TileTable, columns: Mapping[str, list[str]]) -> ImageSet:
    files = [posixpath.normpath(name.replace("\\", "/")) if name else "" for name in columns["path"]]
    _check_files(path, files, table)
    images = image_root(config.images, path, files)
    reader, stamps = open_files(images, files, path, config.unreadable)
    ids = columns.get("id", files)
    without_id = [table.row_name(row) for row, name in enumerate(ids) if not name or name in MISSING_VALUES]
    if without_id:
        raise DataError(f"tiles without an id: {shortlist(without_id)}", where=path, fix="fill in the id column")
    if "id" in columns:
        check_rounded(ids, config.columns.get("id", "id"), table.row_name, path)
        if repeated := repeats(ids, table.row_name):
            raise DataError(
                f"{counted(len(repeated), 'tile id occurs', 'tile ids occur')} more than once: "
                f"{shortlist(repeated, 3)}",
                where=path,
                fix="make the ids unique"
                if "id" in config.columns
                else "make the ids unique; or, if the column id does not identify images, use the paths as ids: set "
                f"--tiles.columns.id={config.columns.get('path', 'path')} (clipit predict: --id-column)",
            )
    return ImageSet(ids, stamps, reader, str(path))


def open_table(path: Path, key: str = _KEY) -> TileTable:
    """Open a table in any format.

    Args:
        key: Configuration key or option that contains the path, for error messages.

    Raises:
        DataError: The table does not exist, is a folder, has an unknown format, or cannot be read.
    """
    if path.is_dir():
        raise DataError(
            "the table path is a folder",
            where=path,
            fix=f"set {key} to a .csv, .tsv or .parquet file; if the table is split over several parquet files, "
            "concatenate them"
            + (", or read them with tiles.source=huggingface if they contain the images" * (key == _KEY)),
        )
    if not path.is_file():
        advice = f"correct {key}; {similar_names(str(path))}"
        raise DataError("the table does not exist", where=path, fix=advice)
    check_uncompressed(path)
    suffix = path.suffix.lower()
    if suffix != ".parquet" and suffix not in _DELIMITERS:
        fix = "save the sheet as .csv" if suffix in WORKBOOKS else "use .csv, .tsv or .parquet"
        raise DataError(f"unknown table format {suffix}".rstrip(), where=path, fix=fix)
    check_pointer(path)
    return _read_parquet(path) if suffix == ".parquet" else _read_text(path, _DELIMITERS[suffix])


def _header_hint(names: Sequence[str]) -> str:
    """Return advice if the first row is a tile instead of a header; "" otherwise."""
    if not any(is_image(name.strip()) for name in names):
        return ""
    return "the first row is not a header: add one, such as path,label,split,group, as the first line of the table"


def _example(missing: Collection[str], names: Sequence[str]) -> str:
    """Return an example of the option for a missing field; `file_name` occurs in Hugging Face image folders."""
    if "path" in missing:
        return "path=file_name" if "file_name" in names else "path=NAME"
    return "label=diagnosis" if "label" in missing else f"{min(missing)}=NAME"


def read_columns(
    path: Path, config: TilesConfig, table: TileTable, fields: Sequence[str], fix: str = ""
) -> dict[str, list[str]]:
    """Read the columns of the given fields, keyed by field name.

    `path` is required. `label` is required unless tiles.labels.kind is none or the labels come from annotators. The
    others (id, split, group, mpp) are required only if tiles.columns names them.

    Args:
        fix: What to do if a column is missing; "" to set tiles.columns.
    """
    labelled = config.labels.kind != "none" and config.annotations is None
    required = {"path"} | set(fields) & (set(config.columns) | ({"label"} if labelled else set()))
    by_name = {str(field): column for field, column in config.columns.items()}
    names = {field: by_name.get(field, field) for field in fields}
    absent = {str(field) for field in required if names[field] not in table.names}
    missing = sorted(names[field] for field in absent)
    if missing:
        raise DataError(
            f"missing columns: {', '.join(missing)}; the table has: {', '.join(table.names) or 'none'}",
            where=path,
            fix=table.hint(missing)
            or _header_hint(table.names)
            or fix
            or f"name the columns in tiles.columns, e.g. --tiles.columns.{_example(absent, table.names)} "
            f"(clipit predict: --path-column){_UNLABELLED if missing == ['label'] else ''}",
        )
    check_column_spelling(names, table.names, path, fix)
    columns = {
        field: read_cells(table.column(column), column, path, table.row_name)
        for field, column in names.items()
        if column in table.names
    }
    if not columns["path"]:
        raise DataError("the table has no rows", where=path, fix="add rows below the header")
    return columns


def _split_notes(table: TileTable, columns: Mapping[str, list[str]]) -> tuple[str, ...]:
    unread = () if "split" in columns else table.names
    return split_notes(unread, table.column, "set tiles.columns.split: {name}")


def group_columns(path: Path, table: TileTable, config: TilesConfig) -> dict[str, list[str]]:
    """Read additional columns whose names suggest patients or slides, unless they cannot be read as text."""
    columns = {}
    for name in table.names:
        if is_group_column(name) and name not in {"group", *config.columns.values()}:
            try:
                columns[name] = read_cells(table.column(name), name, path, table.row_name)
            except DataError:
                continue
    return columns


def _read_text(path: Path, delimiter: str) -> TileTable:
    table = read_utf8_csv(path, delimiter)
    index_of = {name: index for index, name in enumerate(table.header)}
    return TileTable(list(index_of), lambda name: [row[index_of[name]] for row in table.rows], table.lines, table.hint)


def _read_parquet(path: Path) -> TileTable:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as stream:  # pyarrow opens only files whose names are UTF-8
            schema = pq.read_schema(stream)
            names = list(schema.names)
            check_column_names(names, path)  # pyarrow's own error does not name a repeated column clearly
            table = pq.read_table(stream, page_checksum_verification=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"not a readable parquet file: {error}", where=path, fix="write it again") from error
    classes = class_names(schema.metadata or {})

    def column(name: str) -> list[Any]:
        cells = table.column(name)
        try:
            values = list(cells.to_pylist())
        except UnicodeDecodeError as error:
            row = next(row for row in range(len(cells)) if _is_invalid(cells[row]))
            raise DataError(
                f"row {row + 1} contains text that is not UTF-8 in column {name}", where=path, fix="write it as UTF-8"
            ) from error
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise DataError(f"cannot read column {name}: {error}", where=path, fix="write the file again") from error
        check_exact(values, str(cells.type), name, path)
        return [name_class(value, classes[name]) for value in values] if name in classes else values

    return TileTable(names, column)


def _is_invalid(cell: Any) -> bool:
    """Return whether a cell of a parquet file is text that is not UTF-8."""
    try:
        cell.as_py()
    except UnicodeDecodeError:
        return True
    return False


def _check_files(path: Path, files: list[str], table: TileTable) -> None:
    nameless = [row for row, name in enumerate(files) if not name]
    if nameless:
        raise DataError(
            f"{counted(len(nameless), 'row has', 'rows have')} no file name; the first is "
            f"{table.row_name(nameless[0])}",
            where=path,
            fix="fill in the path or remove the rows",
        )
    if repeated := repeats(files, table.row_name):
        raise DataError(
            f"{counted(len(repeated), 'file occurs', 'files occur')} more than once: {shortlist(repeated, 3)}",
            where=path,
            fix="keep one row per file; if different files have the same name, prefix each name with its folder",
        )


def image_root(images: str | None, table: Path, files: Sequence[str], option: str = "tiles.images") -> Path:
    """Return the folder or zip to which the paths in a table are relative: the configured one, or the table's folder.

    Raises:
        DataError: A folder is configured, but paths are absolute, and files elsewhere would be read.
    """
    if images is None:
        return table.parent
    absolute = [name for name in files if Path(name).is_absolute() and os.path.lexists(name)]
    if absolute:
        raise DataError(
            f"{counted(len(absolute), 'path is', 'paths are')} absolute, so {option} has no effect on them: "
            f"{shortlist(absolute, 3)}",
            where=table,
            fix=f"write paths relative to {images}, or remove {option} (clipit predict: --images)",
        )
    return Path(images).expanduser()


def open_files(
    images: Path,
    files: list[str],
    table: Path,
    unreadable: Literal["error", "quarantine"],
    option: str = "tiles.images (clipit predict: --images)",
) -> tuple[FileReader | ZipReader, list[str]]:
    """Open a reader for the files of a table, and compute a stamp for each file.

    Args:
        images: Folder or zip that the file names are relative to.
        files: File names, with forward slashes.
        unreadable: `quarantine` to accept links whose target does not exist.
        option: Key or option that sets `images`, for error messages.

    Raises:
        DataError: The folder or zip, or one of the files, does not exist.
    """
    fix = f"correct the paths; set {option} to the folder or zip to which they are relative; or remove the rows"
    if images.is_file():
        stamp_of = zip_stamps(images)
        member_of = spelled_in_zip(stamp_of, images) if any(name not in stamp_of for name in files) else {}
        members = [name if name in stamp_of else member_of.get(normalise(name), "") for name in files]
        missing = [name for name, member in zip(files, members, strict=True) if not member]
        if missing:
            raise missing_files(missing, len(files), list(stamp_of), images, table, fix)
        return ZipReader(images, members), [stamp_of[member] for member in members]
    if not images.is_dir():
        raise DataError(
            "the folder or zip with the images does not exist",
            where=images,
            fix=f"correct {option}; {similar_names(str(images))}",
        )
    stamps: list[str] = []
    missing = []
    dangling: list[str] = []
    names = list(files)
    for row, name in enumerate(files):
        try:
            try:
                stamps.append(file_stamp(images / name))
            except FileNotFoundError:
                if (images / name).is_symlink():
                    dangling.append(name)
                    stamps += image_stamps(images, [name])
                    continue
                names[row] = spelled_on_disk(images, name) or name
                stamps.append(file_stamp(images / names[row]))
        except PermissionError:
            raise
        except (OSError, ValueError):  # missing, or invalid: too long, or with a null character
            missing.append(name)
    if missing:
        raise missing_files(missing, len(files), files_below(images), images, table, fix)
    if dangling and unreadable == "error":
        raise dangling_links(dangling, images)
    return FileReader(images, names), stamps
