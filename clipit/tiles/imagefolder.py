"""Read Hugging Face image folders, in which a metadata file such as `metadata.csv` lists the images and labels."""

import csv
import io
import json
import os
import posixpath
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from clipit.config.run import TilesConfig
from clipit.errors import DataError, is_limit, printable, repeats, shortlist
from clipit.input_files.csv_tables import without_end_mark
from clipit.input_files.data_files import hub_id, is_saved_dataset
from clipit.input_files.dataset_paths import split_files
from clipit.input_files.folder_files import list_files
from clipit.input_files.zip_files import check_uncompressed
from clipit.output_files.json_record import unique_keys
from clipit.tiles.cells import stored_cell
from clipit.tiles.missing_files import files_below, missing_files, spelled_on_disk
from clipit.tiles.table import TileTable, open_table

METADATA_FILES = frozenset({"metadata.csv", "metadata.jsonl", "metadata.parquet"})
"""Names of the metadata files of Hugging Face image folders."""
_FILE_COLUMN = "file_name"
_LABELS = frozenset({"label", "labels", "class", "category", "diagnosis", "target"})
_MAX_HEADER = 2**20  # leading bytes of a csv or jsonl file that are searched for column names
_EXAMPLE = 'write lines such as {"file_name": "a.png", "label": "tumour"}'
_FIX = "correct the names, which are relative to the folder of the metadata file, or remove the rows"


def load_image_folder(path: str, column: str) -> dict[str, Any] | None:
    """Load a local image folder, with the cells of its metadata files as text; return None for any other data set.

    The datasets package would infer types: patients 007 and 07 would both become 7, and the class None would become a
    missing value. It would also use its cached copy of a metadata file after the file was replaced by one with the same
    modification time.

    Args:
        path: Path of the data set.
        column: Name of the image column, whose files must exist.

    Returns:
        A `datasets.Dataset` for each split with a metadata file. Cells are text, as returned by `stored_cell`.

    Raises:
        DataError: A metadata file cannot be read or lists no image files, its columns differ from those of another file
            of the split, or image files are missing; or a csv in a zip is malformed.
    """
    folder = Path(path).expanduser()
    if hub_id(path) is not None or not folder.is_dir() or is_saved_dataset(folder):
        return None
    files = list_files(folder, lambda file: file.name in METADATA_FILES or file.suffix.lower() == ".zip").files
    for file in files:
        if file.suffix.lower() == ".zip":
            _check_zipped_tables(file)
    if not any(file.name in METADATA_FILES for file in files):
        return None
    import datasets

    try:
        builder = datasets.load_dataset_builder(str(folder))
    except Exception as error:  # load_huggingface raises it again, with an explanation
        if is_limit(error):
            raise
        return None
    parts = {str(split): list(map(Path, files)) for split, files in (builder.config.data_files or {}).items()}
    if builder.name != "imagefolder" or any(
        file.suffix.lower() == ".zip" for files in parts.values() for file in files
    ):
        return None
    tables = {split: sorted(file for file in files if file.name in METADATA_FILES) for split, files in parts.items()}
    return {split: _read_metadata(files, column) for split, files in tables.items() if files} or None


def _check_zipped_tables(archive: Path) -> None:
    """Check the metadata.csv files in a zip, because pandas, which `datasets` uses, accepts stray quotation marks.

    Raises:
        DataError: Such a file is malformed, or a stray quotation mark joins rows.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [name for name in opened.namelist() if PurePosixPath(name).name == "metadata.csv"]
            contents = {name: opened.read(name) for name in names}
    except Exception as error:  # zipfile raises many kinds of exceptions; load_huggingface explains them
        if is_limit(error):
            raise
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, content in contents.items():
            table = Path(folder) / "metadata.csv"
            table.write_bytes(content)
            try:
                open_table(table)
            except DataError as error:
                raise DataError(error.what, where=f"{archive}!{name}", fix=error.fix) from error


def inferred_types(splits: Iterable[Any]) -> str:
    """Return a warning about missing texts if `datasets` read the metadata of an image folder; "" otherwise."""
    import datasets

    own_kinds = (datasets.Image, datasets.ClassLabel)  # types of images, and of labels from folder names
    if all(isinstance(kind, own_kinds) for rows in splits for kind in (rows.features or {}).values()):
        return ""
    return (
        "the datasets package read the metadata file of this image folder; in a metadata.csv it reads NA, None and "
        "null as missing. To read these cells as text, download or unpack the folder, and set tiles.path to it"
    )


def _read_metadata(files: Sequence[Path], image_column: str) -> Any:
    """Read the metadata files of a split as a `datasets.Dataset`."""
    import datasets

    tables = {file: _read_json_lines(file) if file.suffix == ".jsonl" else open_table(file) for file in files}
    names = {name: _renamed(name) for name in tables[files[0]].names}
    if alike := repeats([*names.values()], [*names].__getitem__):
        raise DataError(
            f"two columns for one name in the data set, because file_name stands for the image: {shortlist(alike)}",
            where=files[0],
            fix="rename or remove the other column",
        )
    columns: dict[str, list[Any]] = {column: [] for column in names.values()}
    for file, table in tables.items():
        if {*table.names} != {*names} or not any(map(_is_file_column, names)):
            needed = f"those of {files[0]} are {', '.join(names)}" if file != files[0] else f"none is {_FILE_COLUMN}"
            raise DataError(
                f"the columns are {', '.join(table.names)}, but {needed}",
                where=file,
                fix=f"name the column with the image files {_FILE_COLUMN}, and use the same columns in all metadata "
                "files of a split",
            )
        for name, column in names.items():
            cells = [stored_cell(cell) for cell in table.column(name)]
            if _is_file_column(name):
                columns[column] += _images(cells, file, required=column == image_column)
            else:
                columns[column] += cells
    text, image = datasets.Value("string"), datasets.Image()
    features = datasets.Features({column: image if _is_file_column(name) else text for name, column in names.items()})
    info = datasets.DatasetInfo(features=features, builder_name="imagefolder")
    return datasets.Dataset.from_dict(columns, features=features, info=info)


def _is_file_column(name: str) -> bool:
    return name == _FILE_COLUMN or name.endswith(f"_{_FILE_COLUMN}")


def _renamed(name: str) -> str:
    """Return the name that the datasets package gives to a column of a metadata file: `image` for `file_name`."""
    return (name.removesuffix(_FILE_COLUMN).rstrip("_") or "image") if _is_file_column(name) else name


def _images(names: Sequence[str], table: Path, *, required: bool) -> list[dict[str, str] | None]:
    """Map file names in a column to images that are not yet read; None for empty cells.

    Raises:
        DataError: The column is required, and files are missing.
    """
    folder = table.parent
    files = [posixpath.normpath(name.replace("\\", "/")) if name else "" for name in names]
    absent = {name for name in files if name and not os.path.lexists(folder / name)}
    spelled = {name: spelled_on_disk(folder, name) for name in absent}
    missing = [name for name in files if name in absent and spelled[name] is None]
    if missing and required:
        raise missing_files(missing, len(files), files_below(folder), folder, table, _FIX)
    return [{"path": str(folder / (spelled.get(name) or name))} if name else None for name in files]


def _read_json_lines(path: Path) -> TileTable:
    """Read a table with one JSON object per line; missing keys are empty cells."""
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    check_uncompressed(path)
    try:
        texts = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text: {error}", where=path, fix="save the file as UTF-8") from error
    for line, text in enumerate(without_end_mark(texts), 1):
        try:
            row = json.loads(text, object_pairs_hook=unique_keys) if text.strip() else {}
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"invalid JSON: {error}", where=f"{path}, line {line}", fix="write one JSON object per line"
            ) from error
        if not isinstance(row, dict):
            raise DataError("not a JSON object", where=f"{path}, line {line}", fix=_EXAMPLE)
        if row:
            rows.append(row)
            lines.append(line)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return TileTable(names, lambda name: [row.get(name) for row in rows], lines)


def unread_metadata(config: TilesConfig) -> tuple[str, ...]:
    """Return notes on the metadata files of a local image folder that the datasets package does not read.

    If folders or files are named after splits, such as `train/`, the package reads only the metadata next to them.

    Raises:
        DataError: Such a file has labels, and neither tiles.classes nor tiles.class_map is set.
    """
    folder = Path(config.path).expanduser()
    if hub_id(config.path) is not None or not folder.is_dir() or is_saved_dataset(folder):
        return ()
    described = list_files(folder, lambda file: file.name in METADATA_FILES).files
    parts = split_files(config.path, "tiles.path", images=True) if described else {}
    read = {os.path.realpath(file) for files in parts.values() for file in files}
    notes: list[str] = []
    for file in described:
        columns = [] if os.path.realpath(file) in read else _columns(file.name, partial(_read_start, file))
        if not any(map(_is_file_column, columns)):
            continue
        what = (
            f"the datasets package does not read {file.relative_to(folder)} (columns "
            f"{shortlist([printable(column) for column in columns], 8)}), because folders or files are named after "
            "splits"
        )
        fix = f"set tiles.source: table, tiles.path: {_as_table(file)} and tiles.columns: {{path: {_FILE_COLUMN}, ...}}"
        has_labels = any(name.casefold() in _LABELS or name == config.columns.get("label") for name in columns)
        if has_labels and config.labels.kind != "none" and not config.classes and not config.class_map:
            fix += "; or move the file away to use the folder names as labels"
            raise DataError(what, where=folder, fix=fix)
        notes.append(f"{what} (to read it, {fix})")
    return tuple(notes)


def _read_start(file: Path, name: str, size: int | None) -> bytes:
    with file.open("rb") as stream:
        return stream.read(size)


def check_metadata(
    config: TilesConfig, root: Path, others: Sequence[str], read: Callable[[str, int | None], bytes], *, loose: bool
) -> tuple[str, ...]:
    """Check that labels come from folder names, and not from a metadata file next to the images.

    Args:
        config: Section `tiles`.
        root: Folder or zip of the tiles.
        others: Names of the files in that folder or zip that are not images.
        read: Function that returns the first bytes of such a file, given its name and the number of bytes (None: all).
        loose: Whether some images are outside class folders.

    Returns:
        Notes on metadata files without labels, which are not read.

    Raises:
        DataError: There is a metadata file, and some images are outside class folders; or it has labels, and neither
            tiles.classes nor tiles.class_map is set.
    """
    notes: list[str] = []
    described = sorted(file for file in others if PurePosixPath(file).name in METADATA_FILES)
    for name in described:
        columns = _columns(name, read)
        if not any(map(_is_file_column, columns)):
            continue
        labels = [column for column in columns if column.casefold() in _LABELS]
        listed = shortlist([printable(column) for column in columns], 8)
        if loose or (labels and not config.classes and not config.class_map):
            raise DataError(
                f"{name} describes the images, as in a Hugging Face image folder (columns {listed}), but "
                "tiles.source=folders takes labels only from folder names",
                where=root,
                fix=_fix(root, name, labels, single=len(described) == 1),
            )
        notes.append(
            f"{name} is not read (columns {listed}); labels come from folder names (to read the file, set "
            "tiles.source to huggingface or table)"
        )
    return tuple(notes)


def _fix(root: Path, name: str, labels: Sequence[str], *, single: bool) -> str:
    """Describe how to read a metadata file, or several, which are no single table of tiles."""
    if root.is_file():
        return "unpack the zip and set tiles.source: huggingface; or repack it without this file to use folder names"
    label = "" if "label" in labels else f" and tiles.columns: {{label: {labels[0] if labels else 'COLUMN'}}}"
    table = (
        "; or, to also use other columns such as patients, tiles.source: table, tiles.path: "
        f"{_as_table(root / name)} and tiles.columns: {{path: {_FILE_COLUMN}, ...}}"
    )
    return (
        f"set tiles.source: huggingface{label}{table if single else ''}; or move the {'file' if single else 'files'} "
        "away to use the folder names as labels"
    )


def _as_table(file: Path) -> str:
    """Return the path of a metadata file, or of the csv file that it must be converted to, with a remark."""
    return f"{file.with_suffix('.csv')} (convert {file.name} to csv first)" if file.suffix == ".jsonl" else str(file)


def _columns(name: str, read: Callable[[str, int | None], bytes]) -> list[str]:
    """Return the column names of a metadata file; an empty list if it cannot be read."""
    try:
        data = read(name, None if name.endswith(".parquet") else _MAX_HEADER)
        if name.endswith(".parquet"):
            import pyarrow.parquet as pq

            return [str(column) for column in pq.read_schema(io.BytesIO(data)).names]
        first = next((line for line in data.split(b"\n") if line.strip()), b"").decode("utf-8-sig")
        if name.endswith(".jsonl"):
            row = json.loads(first)
            return [*row] if isinstance(row, dict) else []
        return next(csv.reader([first]), [])
    except (OSError, ValueError, StopIteration, csv.Error, RecursionError) as error:
        if is_limit(error):
            raise
        return []
