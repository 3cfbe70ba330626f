"""Read tiles from a Hugging Face data set: a local folder, or `hf:owner/name` on the Hub."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipit.config.run import TilesConfig
from clipit.errors import DataError, counted, shortlist
from clipit.images.decode import is_image
from clipit.images.image_files import image_stamps
from clipit.images.image_readers import Reader, file_stamp
from clipit.input_files.data_files import hub_id, is_saved_dataset, load_huggingface, trimmed
from clipit.input_files.dataset_paths import split_files
from clipit.input_files.folder_files import list_files
from clipit.input_files.mangled_names import check_exact, check_rounded
from clipit.input_files.numbered_files import missing_data_files, unread_data_files
from clipit.input_files.parquet_classes import check_arrow
from clipit.input_files.spelling import check_column_spelling
from clipit.output_files.artifacts import fingerprint
from clipit.tiles.cells import parse_mpp, read_cells, resolve_missing
from clipit.tiles.groups import is_group_column
from clipit.tiles.huggingface_images import (
    DatasetReader,
    check_folder_labels,
    check_image_paths,
    image_paths,
    is_image_folder,
    unused_images,
)
from clipit.tiles.imagefolder import inferred_types, load_image_folder, unread_metadata
from clipit.tiles.source import SourceTiles
from clipit.tiles.split_columns import split_notes
from clipit.tiles.splits import select_splits, unused_splits

_SPLIT_ADVICE = (
    "save the data set with one split per value, or, for a folder of image files, set tiles.source: table, tiles.path "
    "to its metadata file, and tiles.columns: {{path: file_name, split: {name}}}"
)
_DEFAULTS = {"path": "image", "label": "label"}


@dataclass(frozen=True)
class SplitRows:
    """Rows of one split of a data set, without the images.

    Attributes:
        count: Number of rows.
        names: Column names.
        text: Function that returns the cells of a column as text, "" where missing; class indices are not replaced.
        class_names: Class names by column, for columns of class indices.
        stamps: Stamp of each image (see `SourceTiles.stamps`).
    """

    count: int
    names: Sequence[str]
    text: Callable[[str], list[str]]
    class_names: Mapping[str, Sequence[str]]
    stamps: Sequence[str]


def read_huggingface(config: TilesConfig) -> SourceTiles:
    """Read the tiles of a data set; ids come from the column `tiles.columns.id` if that is set, else `<split>/<row>`.

    The image column is `image` and the label column `label`, unless tiles.columns sets others (`path` names the image
    column). If tiles.splits is set, other splits are dropped, with a note, unless their names are standard. Without
    splits, all rows belong to train.

    Raises:
        DataError: The data set cannot be loaded, or lacks splits or columns.
    """
    column = image_column(config)
    as_text = load_image_folder(config.path, column)
    loaded = as_text or load_huggingface(config.path, "tiles.path", texts=text_columns(config))
    all_splits = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    splits = select_splits(all_splits, config)
    unread = unread_metadata(config)
    undecoded: dict[str, Any] = {}
    described: dict[str, SplitRows] = {}
    check_columns({split: rows.column_names for split, rows in splits.items()}, config)
    for split, rows in splits.items():
        check_arrow(rows, f"{config.path}, split {split}")
        undecoded[split] = _undecoded_images(rows, column, config.path)
        described[split] = _describe_rows(
            rows, f"{config.path}, split {split}", _stamps(rows, column, config.path, split)
        )
    notes = [*unused_splits({name: int(rows.num_rows) for name, rows in all_splits.items()}, splits)]
    if is_image_folder(config.path, splits.values()):
        check_image_paths({split: image_paths(rows, column) for split, rows in splits.items()}, config.path)
        if as_text is None and (warning := inferred_types(splits.values())):
            notes.append(f"WARNING: {warning}")
        if has_folder_labels(config, splits.values()):
            notes += check_folder_labels(
                {
                    split: list(zip(image_paths(rows, column), rows.data.column("label").to_pylist(), strict=True))
                    for split, rows in splits.items()
                },
                config.path,
            )
    source = join_splits(described, config, DatasetReader(undecoded, column))
    notes += (*unread, *missing_data_files(config.path))
    notes += unread_data_files(config.path) if as_text is None else ()
    notes += unused_images(config.path, loaded, column)
    return replace(source, notes=(*source.notes, *notes))


def join_splits(splits: Mapping[str, SplitRows], config: TilesConfig, reader: Reader) -> SourceTiles:
    """Join the tiles of all splits.

    Args:
        splits: Rows of each split, with checked columns.
        config: Section `tiles`.
        reader: Reader of the images, with rows numbered across the splits.

    Raises:
        DataError: The splits have different classes, there are no rows, or a cell is invalid.
    """
    names = _column_names(config)
    columns: dict[str, list[str]] = {key: [] for key in names}
    split_of_row: list[str] = []
    stamps: list[str] = []
    unlabelled: list[str] = []
    classes: tuple[str, ...] | None = None
    present = {name for rows in splits.values() for name in rows.names}
    others: dict[str, list[str]] = {
        name: []
        for name in sorted(present - {*names.values()})
        if is_group_column(name) and names["group"] not in present
    }
    for split, rows in splits.items():
        if names["label"] in rows.names:
            split_classes = tuple(map(trimmed, rows.class_names.get(names["label"], ()))) or None
            if classes is not None and split_classes != classes:
                raise DataError("the splits have different class names", where=config.path, fix="repair the data set")
            classes = split_classes
        elif names["label"] in present and _needs_labels(config):
            all_rows = counted(rows.count, "tile is", "tiles are")
            unlabelled.append(f"split {split} has no column {names['label']}: its {all_rows} unlabelled")
        split_of_row += [split] * rows.count
        stamps += rows.stamps
        where = f"{config.path}, split {split}"
        for key in ("id", "group", "mpp"):
            columns[key] += _named_cells(rows, names[key], where)
        labels = rows.text(names["label"])
        columns["label"] += labels if classes is None else _name_classes(labels, classes, where)
        for name, values in others.items():
            values += rows.text(name)
    if not split_of_row:
        raise DataError("the data set has no rows", where=config.path, fix="choose a different data set")
    row_ids = [f"{split}/{row:06d}" for split, rows in splits.items() for row in range(rows.count)]
    ids = columns["id"] if "id" in config.columns else row_ids
    without_id = [row_ids[row] for row, name in enumerate(ids) if not name]
    if without_id:
        raise DataError(
            f"tiles without an id: {shortlist(without_id)}",
            where=config.path,
            fix="choose a different column: tiles.columns.id",
        )
    if "id" in config.columns:
        check_rounded(ids, names["id"], row_ids.__getitem__, config.path)
    labels, label_notes = columns["label"], tuple[str, ...]()
    if classes is None:
        labels, label_notes = resolve_missing(labels, "label", config, config.path, row_ids.__getitem__)
    groups, group_notes = resolve_missing(columns["group"], "group", config, config.path, row_ids.__getitem__)
    only = next(iter(splits.values()))
    unread = sorted(present - {*names.values()}) if len(splits) == 1 else ()
    return SourceTiles(
        ids=ids,
        labels=labels,
        source_splits=split_of_row,
        groups=groups,
        mpp=parse_mpp(columns["mpp"], config.path, row_ids.__getitem__),
        stamps=stamps,
        reader=reader,
        where=config.path,
        classes=classes and tuple(filter(None, dict.fromkeys(classes))),  # "" marks missing labels, as in tables
        notes=(
            *unlabelled,
            *label_notes,
            *group_notes,
            *split_notes(unread, lambda name: _named_cells(only, name, config.path), _SPLIT_ADVICE),
        ),
        columns=others,
    )


def image_column(config: TilesConfig) -> str:
    """Return the name of the image column."""
    return _column_names(config)["path"]


def text_columns(config: TilesConfig) -> list[str]:
    """Return the names of the columns whose cells are read as text."""
    return sorted({name for key, name in _column_names(config).items() if key != "path"})


def check_columns(splits: Mapping[str, Sequence[str]], config: TilesConfig) -> None:
    """Check that the splits have the columns that the configuration needs.

    Splits without the label column are unlabelled if another split has it.

    Args:
        splits: Columns of each split.

    Raises:
        DataError: Columns are missing.
    """
    names = _column_names(config)
    required = {"path"} | set(config.columns) - {"split"} | ({"label"} if _needs_labels(config) else set())
    if any(names["label"] in present for present in splits.values()):
        required -= {"label"}
    for split, present in splits.items():
        _check_split(split, present, required, names, config)


def has_folder_labels(config: TilesConfig, splits: Iterable[Any]) -> bool:
    """Return whether `datasets` took labels that the configuration needs from folders of a local image folder.

    The columns are then an image and a class index; cells of metadata files are text.
    """
    columns = {name: type(kind).__name__ for rows in splits for name, kind in (rows.features or {}).items()}
    is_chosen = bool(config.classes or config.class_map) or not _needs_labels(config)
    return hub_id(config.path) is None and not is_chosen and columns == {"image": "Image", "label": "ClassLabel"}


def _needs_labels(config: TilesConfig) -> bool:
    return config.labels.kind != "none" and config.annotations is None


def _check_split(
    split: str, present: Sequence[str], required: Iterable[str], names: Mapping[str, str], config: TilesConfig
) -> None:
    missing = sorted(names[key] for key in required if names[key] not in present)
    if missing:
        folder, fix = Path(config.path).expanduser(), "set the column names in tiles.columns (path: the image column)"
        is_local = hub_id(config.path) is None
        if missing == [names["label"]] and [*present] == ["image"] and is_local and list_files(folder, is_image).files:
            fix = (
                "set tiles.source: folders; the datasets package takes labels from folders only if all images are in "
                "<class>/ or <split>/<class>/, without subfolders, and no other name contains a word such as test"
            )
        raise DataError(
            f"missing columns: {', '.join(missing)}; split {split} has: {', '.join(present)}",
            where=config.path,
            fix=fix,
        )
    check_column_spelling({key: name for key, name in names.items() if key != "id"}, present, config.path)


def _column_names(config: TilesConfig) -> dict[str, str]:
    """Map clipit's column names to those of the data set."""
    by_name = {str(field): column for field, column in config.columns.items()}
    return {key: by_name.get(key, _DEFAULTS.get(key, key)) for key in ("id", "path", "label", "group", "mpp")}


def _named_cells(rows: SplitRows, column: str, where: str) -> list[str]:
    """Return the cells of a column as text, with class indices replaced by names."""
    cells, names = rows.text(column), rows.class_names.get(column)
    return cells if names is None else _name_classes(cells, [*map(trimmed, names)], where)


def _name_classes(numbers: Sequence[str], classes: Sequence[str], where: str) -> list[str]:
    """Replace class indices with names; negative indices mark missing labels and become ""."""
    names = {"": ""} | {str(number): name for number, name in enumerate(classes)}
    unnamed = sorted({number for number in numbers if number not in names and not number.startswith("-")})
    if unnamed:
        raise DataError(
            f"class indices without a name: {shortlist(unnamed)}; there are {counted(len(classes), 'name')}",
            where=where,
            fix="repair the data set",
        )
    return [names.get(number, "") for number in numbers]


def _stamps(rows: Any, column: str, path: str, split: str) -> list[str]:
    """Return a stamp for each image, from its file in a local image folder and otherwise from the data files."""
    folder = Path(path).expanduser()
    if hub_id(path) is not None or is_saved_dataset(folder):
        return [str(rows._fingerprint)] * int(rows.num_rows)
    if is_image_folder(path, [rows]):
        files, start = image_paths(rows, column), f"{folder.resolve()}{os.sep}"
        if all(file is None or file.startswith(start) for file in files):  # others are unpacked from a zip
            return image_stamps(folder, [file or "" for file in files])
    # The fingerprint of `datasets` depends on the path of local files, and not on their sizes.
    stated = [[file.name, file_stamp(file)] for file in split_files(path, "tiles.path", images=True)[split]]
    return [fingerprint(stated)] * int(rows.num_rows)


def _describe_rows(rows: Any, where: str, stamps: Sequence[str]) -> SplitRows:
    class_names = {name: tuple(feature.names) for name, feature in rows.features.items() if hasattr(feature, "names")}

    def text(column: str) -> list[str]:
        return _column_as_text(rows, column, where)

    return SplitRows(int(rows.num_rows), rows.column_names, text, class_names, stamps)


def not_images(column: str, kind: str, where: str) -> DataError:
    """Build the error for an image column that does not contain images."""
    return DataError(
        f"column {column} contains {kind}, not images", where=where, fix="name the image column: tiles.columns.path"
    )


def _undecoded_images(rows: Any, column: str, where: str) -> Any:
    """Select the image column as bytes or paths; clipit decodes images itself to detect truncated ones."""
    import datasets

    if not isinstance(rows.features[column], datasets.Image):
        raise not_images(column, str(rows.features[column]), where)
    return rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def _column_as_text(rows: Any, column: str, where: str) -> list[str]:
    """Read a column as text; missing cells, and all cells of a missing column, are ""."""
    if column not in rows.column_names:
        return [""] * int(rows.num_rows)
    try:
        values = list(rows[column])
    except Exception as error:  # pyarrow raises many kinds of exceptions for damaged files
        raise DataError(
            f"cannot read column {column}: {type(error).__name__}: {error}", where=where, fix="download it again"
        ) from error
    check_exact(values, getattr(rows.features[column], "dtype", ""), column, where)
    return read_cells(values, column, where, lambda row: f"row {row}")
