"""Read images with texts: a table with one row per image-text pair, or tar shards in webdataset format."""

import json
import logging
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipit.config.run import LabelsConfig, TilesConfig
from clipit.config.vlm_training import PairsConfig
from clipit.errors import ClipitError, DataError, counted, shortlist
from clipit.input_files.data_files import MISSING_VALUES, cell_text
from clipit.input_files.mangled_names import check_rounded
from clipit.input_files.spelling import check_column_spelling
from clipit.reports.symbol_fonts import translate_symbols
from clipit.tiles.cells import parse_mpp, read_cells, resolve_missing
from clipit.tiles.groups import column_advice
from clipit.tiles.hold_out import hold_out_validation
from clipit.tiles.load_tiles import resolve_source
from clipit.tiles.quarantine import check_images
from clipit.tiles.source import ALIASES, SourceTiles
from clipit.tiles.splits import check_groups
from clipit.tiles.table import TileTable, group_columns, image_root, open_files, open_table
from clipit.tiles.tar_index import FIELD_PREFIX, index_shards
from clipit.tiles.tileset import TileSet
from clipit.tiles.webdataset import read_webdataset
from clipit.vlm_training.captions import describe_caption_faults

logger = logging.getLogger(__name__)

_IMAGES = "adapt.pairs.images"
_SHARED_KEYS = re.compile(r"\btiles\.(?=(path|images|columns)\b)")
"""Keys of `tiles` that `adapt.pairs` also has."""


@dataclass(frozen=True)
class CaptionedTiles:
    """Images with their texts.

    Attributes:
        tiles: Images that can be decoded, with splits and groups.
        captions: Texts of each row of the source (see `tiles.rows`), without line breaks; may be empty.
    """

    tiles: TileSet
    captions: list[list[str]]

    def captions_of(self, tile: int) -> list[str]:
        """Return the texts of a tile."""
        return self.captions[int(self.tiles.rows[tile])]


def read_captioned(section: PairsConfig, root: Path) -> CaptionedTiles:
    """Read images with texts, and drop images that cannot be decoded; called by all processes.

    Args:
        section: Section `adapt.pairs`.
        root: Artefact folder, with the index of the shards.

    Raises:
        DataError: The source is missing, damaged or contradictory, or an image is missing.
    """
    columns = {field: column for field, column in section.columns.items() if field != "text"}
    values = section.model_dump(include={"source", "path", "images", "validation_fraction", "split_seed"})
    labels = LabelsConfig(kind="none")
    config = TilesConfig.model_validate({**values, "columns": columns, "labels": labels, "unreadable": "quarantine"})
    with _pair_keys_in_errors():
        if section.source == "table":
            source, captions = _read_table(config, section)
        else:
            source, captions = _read_shards(config, section, root)
        _check_splits(source)
        tiles = resolve_source(source, config)
        tiles = replace(tiles, notes=tuple(map(_pair_keys, tiles.notes)))
        check_groups(tiles)
        tiles = check_images(tiles, config.unreadable)
        faults = describe_caption_faults([text for texts in captions for text in texts])
        if advice := column_advice(source.groups, source.ids, source.columns):
            faults.append(_pair_keys(advice))
        for fault in faults:
            logger.warning(f"WARNING: {fault}")
        tiles = replace(tiles, notes=(*tiles.notes, *(f"WARNING: {fault}" for fault in faults)))
    return CaptionedTiles(tiles, captions)


def hold_out(tiles: TileSet, section: PairsConfig) -> TileSet:
    """Hold out whole groups of training images for validation, unless there is a validation split.

    Raises:
        DataError: No group can be moved.
    """
    if not (tiles.splits == "train").any() or (tiles.splits == "validation").any():
        return tiles
    fix = "add a split column, or raise adapt.pairs.validation_fraction"
    return hold_out_validation(tiles, section.validation_fraction, section.split_seed, blind=True, fix=fix)


@contextmanager
def _pair_keys_in_errors() -> Iterator[None]:
    """Replace the keys of `tiles` with those of `adapt.pairs` in errors of functions that read tiles."""
    try:
        yield
    except ClipitError as error:
        raise type(error)(_pair_keys(str(error))) from error


def _pair_keys(text: str) -> str:
    """Replace keys of `tiles` with those of `adapt.pairs`, which has no key for the names of splits."""
    return _SHARED_KEYS.sub("adapt.pairs.", text.removesuffix("; set tiles.splits to change this"))


def _read_table(config: TilesConfig, section: PairsConfig) -> tuple[SourceTiles, list[list[str]]]:
    """Read a table with one row per image-text pair."""
    path = Path(config.path).expanduser()
    table = open_table(path)
    names = {field: section.columns.get(field, field) for field in ("id", "path", "text", "group", "split", "mpp")}
    required = {"path", "text", *section.columns}
    missing = sorted(names[field] for field in required if names[field] not in table.names)
    if missing:
        raise DataError(
            f"missing columns: {', '.join(missing)}; the table has: {', '.join(table.names) or 'none'}",
            where=path,
            fix=table.hint(missing)
            or "name the columns in adapt.pairs.columns, for example --adapt.pairs.columns.text=caption",
        )
    check_column_spelling(names, table.names, path)
    cells = {
        field: read_cells(table.column(name_in_table), name_in_table, path, table.row_name)
        for field, name_in_table in names.items()
        if field != "text" and name_in_table in table.names
    }
    texts = [_captions(value, path, table.row_name(row)) for row, value in enumerate(table.column(names["text"]))]
    files = [posixpath.normpath(name.replace("\\", "/")) if name else "" for name in cells["path"]]
    rows = _rows_by_file(files, cells, path, table, section.columns)
    first = [each[0] for each in rows]
    images = image_root(section.images, path, [files[row] for row in first], _IMAGES)
    reader, stamps = open_files(images, [files[row] for row in first], path, config.unreadable, _IMAGES)

    def column(field: str) -> list[str]:
        return [cells[field][row] for row in first] if field in cells else [""] * len(first)

    def row_name(row: int) -> str:
        return table.row_name(first[row])

    ids = column("id") if "id" in cells else [files[row] for row in first]
    without_id = [row_name(row) for row, name in enumerate(ids) if not name]
    if without_id:
        raise DataError(f"images without an id: {shortlist(without_id)}", where=path, fix="fill in the id column")
    check_rounded(column("id"), names["id"], row_name, path)
    groups, notes = resolve_missing(column("group"), "group", config, path, row_name)
    source = SourceTiles(
        ids=ids,
        labels=[""] * len(first),
        source_splits=column("split"),
        groups=groups,
        mpp=parse_mpp(column("mpp"), path, row_name),
        stamps=stamps,
        reader=reader,
        where=str(path),
        notes=notes,
        columns={name: [values[row] for row in first] for name, values in group_columns(path, table, config).items()},
    )
    return source, [[text for row in each for text in texts[row]] for each in rows]


def _rows_by_file(
    files: list[str], cells: dict[str, list[str]], path: Path, table: TileTable, columns: Mapping[Any, str]
) -> list[list[int]]:
    """Return the rows of each file, in order of first occurrence; rows of a file may differ only in the text.

    Args:
        columns: Configured column of each field (`adapt.pairs.columns`).
    """
    if not files:
        raise DataError("the table has no rows", where=path, fix="add one row per image-text pair")
    nameless = [table.row_name(row) for row, name in enumerate(files) if not name]
    if nameless:
        raise DataError(
            f"{counted(len(nameless), 'row has', 'rows have')} no file name: {shortlist(nameless, 3)}",
            where=path,
            fix="fill in the path or remove the rows",
        )
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(files):
        rows.setdefault(name, []).append(row)
    others = [name for name in cells if name != "path"]
    wrong = [
        (table.row_name(row), name)
        for each in rows.values()
        for row in each[1:]
        for name in others
        if cells[name][row] != cells[name][each[0]]
    ]
    if wrong:
        raise DataError(
            "rows of the same image differ in more than the text: "
            f"{shortlist([f'{row} ({name})' for row, name in wrong])}",
            where=path,
            fix="if the column id does not identify images, use the paths as ids: set "
            f"--adapt.pairs.columns.id={columns.get('path', 'path')}; otherwise give all rows of an image the same id"
            if "id" not in columns and {name for _, name in wrong} == {"id"}
            else "give all rows of an image the same id, group, split and mpp",
        )
    return list(rows.values())


def _read_shards(config: TilesConfig, section: PairsConfig, root: Path) -> tuple[SourceTiles, list[list[str]]]:
    field = section.columns.get("text", "txt")
    index = index_shards(config, root, field)
    if not index.has(field):
        raise DataError(
            f"no sample has the text field {field}; the samples have: {index.known_fields}",
            where=config.path,
            fix="set adapt.pairs.columns.text to the suffix of the text files, or to a key of the JSON files"
            if field not in index.unread
            else f"name the members .{field}.txt and set adapt.pairs.columns.text to {field}.txt",
        )
    captions = [
        _captions(json.loads(stored) if stored else "", config.path, index.members[row])
        for row, stored in enumerate(index.text(f"{FIELD_PREFIX}{field}"))
    ]
    return read_webdataset(config, root, field), captions


def _captions(value: Any, where: object, row_name: str) -> list[str]:
    """Return the texts in a cell, which contains one text or a list of texts."""
    return [_caption(each, where, row_name) for each in (value if isinstance(value, list) else [value])]


def _caption(value: Any, where: object, row_name: str) -> str:
    """Translate symbols in a text, and replace line breaks and other white space with single spaces."""
    if isinstance(value, int | float) and value == value:  # NaN, a missing value, differs from itself
        raise DataError(
            f"the text of {row_name} is a number ({value})",
            where=where,
            fix="set adapt.pairs.columns.text to the column with the texts",
        )
    try:
        text = cell_text(" ".join(value.split()) if isinstance(value, str) else value)
    except ValueError as error:
        raise DataError(f"the text of {row_name} contains {error}", where=where, fix="correct this text") from error
    return "" if text in MISSING_VALUES else translate_symbols(text)


def _check_splits(source: SourceTiles) -> None:
    unknown: Sequence[str] = sorted({split for split in source.source_splits if split and split.lower() not in ALIASES})
    partly = any(source.source_splits) and not all(source.source_splits)
    if unknown or partly:
        problem = f"unknown splits: {shortlist(unknown)}" if unknown else "some images have a split, others have none"
        raise DataError(
            problem,
            where=source.where,
            fix="use train, validation and test in the split column (adapt.pairs.columns.split), or remove the column",
        )
