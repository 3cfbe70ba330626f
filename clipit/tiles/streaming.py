"""Stream data sets that do not fit on the disk: read each once, and store its tiles (see `kept_tiles`)."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from clipit.config.run import TilesConfig
from clipit.distributed import build_once, get_processes
from clipit.errors import ClipitError, ConfigError, DataError, as_note, counted_of, is_limit
from clipit.images.image_readers import file_stamp
from clipit.images.image_set import JoinedReader
from clipit.input_files.data_files import hub_id, hub_revision, is_saved_dataset, load_huggingface
from clipit.input_files.dataset_errors import describe_error, failed_files, zip_advice
from clipit.input_files.folder_files import list_files
from clipit.input_files.mangled_names import check_exact
from clipit.input_files.numbered_files import missing_data_files, unread_data_files
from clipit.input_files.parquet_classes import check_described_classes, check_parquet_classes, hub_parquet
from clipit.output_files.artifacts import REBUILD, Artifact, fingerprint, read_json, reading, write_json
from clipit.tiles.cells import check_stored, stored_cell
from clipit.tiles.huggingface import (
    SplitRows,
    check_columns,
    has_folder_labels,
    image_column,
    join_splits,
    not_images,
    text_columns,
)
from clipit.tiles.huggingface_images import check_folder_labels, check_image_paths, is_image_folder
from clipit.tiles.imagefolder import METADATA_FILES, inferred_types, load_image_folder, unread_metadata
from clipit.tiles.kept_tiles import FIELD, Block, KeptSize, KeptTiles, SourceTile, keep_tiles
from clipit.tiles.source import SourceTiles
from clipit.tiles.splits import select_splits, unused_splits
from clipit.tiles.tar_index import index_shards
from clipit.tiles.webdataset import read_webdataset

logger = logging.getLogger(__name__)

_ROWS = 4096  # rows per block of a set written by `save_to_disk`


@dataclass(frozen=True)
class StreamedSplit:
    """A split of a streamed data set.

    Attributes:
        kinds: Type of the values by column; "image" for images.
        class_names: Class names by column, for columns of class indices.
    """

    columns: list[str]
    kinds: dict[str, str]
    class_names: dict[str, list[str]]


@dataclass(frozen=True)
class StreamedSet:
    """A streamed data set.

    Attributes:
        splits: Splits used by the configuration, by name.
        revision: Commit on the Hub that all splits are read from; None for local folders, or if offline.
        metadata: Whether `datasets` reads metadata files, whose cells are then all stored as text; earlier versions
            stored those of columns that the configuration did not name with inferred types.
        notes: Notes on splits that the configuration does not use, and on metadata files that are not read.
    """

    splits: dict[str, StreamedSplit]
    revision: str | None
    metadata: bool
    notes: tuple[str, ...] = ()


def stream_tiles(config: TilesConfig, root: Path | None) -> SourceTiles:
    """Store the tiles of a data set or of webdataset shards, or open those stored by an earlier call.

    Must be called by all processes. Ids, labels, splits, groups and errors are the same as without streaming.

    Args:
        config: Section `tiles`.
        root: Artefact folder.

    Raises:
        ConfigError: There is no artefact folder.
        DataError: The set cannot be read, or lacks splits or columns.
    """
    if root is None:
        raise ConfigError(
            "streamed tiles are cached in the output folder of a configuration, but this command has none",
            where="tiles.streaming",
            fix="remove tiles.streaming, or use a command with a configuration",
        )
    size = KeptSize(config.keep_pixels, config.keep_quality)
    return _stream_webdataset(config, root, size) if config.source == "webdataset" else _stream_set(config, root, size)


def describe_set(config: TilesConfig, root: Path | None) -> StreamedSet:
    """Describe the splits of a Hugging Face data set that the configuration uses, and check their columns.

    The revision of a set on the Hub is looked up once, so that all splits come from the same commit.

    Args:
        config: Section `tiles`.
        root: Artefact folder that caches the description; if given, call this in all processes. None to look up
            the set on every call.

    Raises:
        DataError: The set cannot be loaded, or lacks splits or columns.
    """

    column = image_column(config)

    def look_up() -> StreamedSet:
        revision, name = hub_revision(config.path, "tiles.path"), hub_id(config.path)
        urls = list[str]()
        if name is not None:
            with _reading(config, "the class names of its files"):
                urls = hub_parquet(name, revision)
                check_parquet_classes(urls)
        opened = _open_set(config, revision)
        with _reading(config, "the class names of its files"):
            check_described_classes(urls, opened)
        warning = ""
        if is_image_folder(config.path, opened.values()) and load_image_folder(config.path, column) is None:
            warning = inferred_types(opened.values())
        if warning:
            logger.warning(warning)
        return StreamedSet({name: _describe(rows) for name, rows in opened.items()}, revision, bool(warning))

    def make(folder: Path) -> dict[str, Any]:
        if not get_processes().main:
            return {}
        described = look_up()
        write_json(folder / "splits.json", {name: vars(split) for name, split in described.splits.items()})
        revision = {} if described.revision is None else {"revision": described.revision}
        return revision | {"metadata": described.metadata}

    if root is None:
        described = look_up()
    else:
        inputs = {"set": _identity(config), "version": 3}
        described = _read_description(build_once(root, "streamed_set", inputs, make))
        if described.metadata and any(map(_has_inferred_types, described.splits.values())):  # of an earlier version
            described = _read_description(build_once(root, "streamed_set", {**inputs, "cells": "all text"}, make))
    splits = select_splits(described.splits, config)
    notes = (*unused_splits(dict.fromkeys(described.splits), splits), *unread_metadata(config))
    check_columns({name: split.columns for name, split in splits.items()}, config)
    for split in splits.values():
        if split.kinds[column] != "image":
            raise not_images(column, split.kinds[column], config.path)
    return replace(described, splits=splits, notes=notes)


def _read_description(artifact: Artifact) -> StreamedSet:
    listed, facts = artifact.file("splits.json"), artifact.manifest.facts
    with reading(listed):
        splits = {name: StreamedSplit(**split) for name, split in read_json(listed, REBUILD).items()}
    return StreamedSet(splits, facts.get("revision"), facts["metadata"])


def _has_inferred_types(split: StreamedSplit) -> bool:
    return any(kind.startswith("Value(") and "string" not in kind for kind in split.kinds.values())


def _stream_set(config: TilesConfig, root: Path, size: KeptSize) -> SourceTiles:
    column = image_column(config)
    described = describe_set(config, root)
    revision = {} if described.revision is None else {"revision": described.revision}
    revision |= {"cells": "all text"} if described.metadata else {}
    kept: dict[str, KeptTiles] = {}

    @cache
    def open_splits() -> dict[str, Any]:
        opened = select_splits(_open_set(config, described.revision), config)
        if get_processes().main and is_image_folder(config.path, opened.values()):
            with _reading(config, "its metadata"):
                listed = {
                    name: [((row[column] or {}).get("path"), row.get("label")) for row in rows]
                    for name, rows in opened.items()
                }
            check_image_paths({name: [file for file, _ in rows] for name, rows in listed.items()}, config.path)
            if has_folder_labels(config, opened.values()):
                for note in check_folder_labels(listed, config.path):
                    logger.warning(as_note(note))
        return opened

    for name, split in described.splits.items():
        fields = [field for field in split.columns if split.kinds[field] != "image"]
        inputs = {"set": _identity(config), "part": name, "column": column, **revision}

        def blocks(name: str = name) -> list[Block]:
            return _set_blocks(config, name, column, open_splits()[name])

        kept[name] = keep_tiles(root, {**inputs, "version": 1}, blocks, fields, size, f"{config.path}, split {name}")
    reader = JoinedReader(
        [tiles.reader(f"{name}/") for name, tiles in kept.items()], [len(tiles) for tiles in kept.values()]
    )
    rows = {
        name: _kept_rows(kept[name], split, f"{config.path}, split {name}") for name, split in described.splits.items()
    }
    source = join_splits(rows, config, reader)
    unread = (*described.notes, *missing_data_files(config.path), *unread_data_files(config.path))
    source = replace(source, notes=(*source.notes, *unread))
    return _scale(source, config, np.concatenate([tiles.scales() for tiles in kept.values()]))


def _kept_rows(kept: KeptTiles, split: StreamedSplit, where: str) -> SplitRows:
    def text(column: str) -> list[str]:
        if column not in split.columns or split.kinds[column] == "image":
            return [""] * len(kept)
        values = kept.rows([f"{FIELD}{column}"]).column(0).to_pylist()
        texts = check_stored(values, column, where, lambda row: f"row {row}")
        check_exact(texts, split.kinds[column].removeprefix("Value('").removesuffix("')"), column, where)
        return texts

    return SplitRows(len(kept), split.columns, text, split.class_names, kept.stamps())


def _scale(source: SourceTiles, config: TilesConfig, scales: np.ndarray) -> SourceTiles:
    """Adjust the µm per pixel to the size of the kept images, and add a note if some are resized."""
    resized = int((scales > 1).sum())
    if not resized:
        return source
    stated = np.asarray(source.mpp, dtype=np.float64)
    mpp = np.where(np.isnan(stated), np.nan if config.mpp is None else config.mpp, stated) * scales
    encoding = "lossless" if config.keep_quality is None else f"as JPEG with quality {config.keep_quality}"
    note = f"{counted_of(resized, len(scales), 'tile is', 'tiles are')} stored at {config.keep_pixels} px, {encoding}"
    return replace(source, mpp=mpp.tolist(), notes=(*source.notes, note))


def _identity(config: TilesConfig) -> Any:
    """Return the identity of a data set: its id on the Hub, or a fingerprint of the files in its folder.

    Newer revisions on the Hub are not looked up, so that kept tiles can be used without access to the Hub.
    """
    if hub_id(config.path) is not None:
        return config.path
    folder = Path(config.path).expanduser()
    if not folder.is_dir():
        load_huggingface(config.path, "tiles.path")  # raises an error, because the path is not a folder
    files = list_files(folder).files
    identity = {"folder": fingerprint([[str(file.relative_to(folder)), file_stamp(file)] for file in files])}
    if any(file.name in METADATA_FILES for file in files):  # earlier versions stored cells with inferred types
        identity["cells"] = "text"
    return identity


def _open_set(config: TilesConfig, revision: str | None) -> dict[str, Any]:
    """Open a data set as one stream of undecoded images per split, at a revision if it is on the Hub.

    Raises:
        DataError: The data set cannot be loaded.
    """
    folder = Path(config.path).expanduser()
    saved = load_image_folder(config.path, image_column(config))
    if saved is None and hub_id(config.path) is None and folder.is_dir() and is_saved_dataset(folder):
        saved = load_huggingface(config.path, "tiles.path")
    if saved is not None:
        splits = dict(saved) if isinstance(saved, dict) else {"train": saved}
        opened = {
            name: rows.to_iterable_dataset(num_shards=max(1, -(-int(rows.num_rows) // _ROWS)))
            for name, rows in splits.items()
        }
        for name, rows in splits.items():
            opened[name].info.builder_name = rows.info.builder_name  # for is_image_folder
    else:
        texts = text_columns(config)
        streams = load_huggingface(config.path, "tiles.path", streaming=True, revision=revision, texts=texts)
        opened = dict(streams) if isinstance(streams, dict) else {"train": streams}
    return {name: _undecoded(rows, config) for name, rows in opened.items()}


def _undecoded(rows: Any, config: TilesConfig) -> Any:
    """Return a stream whose images are bytes or paths, with known features."""
    import datasets

    with _reading(config, "its first rows"):
        if rows.features is None:
            rows = rows._resolve_features()
    for name, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def _describe(rows: Any) -> StreamedSplit:
    import datasets

    features = dict(rows.features or {})
    kinds = {name: "image" if isinstance(kind, datasets.Image) else str(kind) for name, kind in features.items()}
    names = {name: list(kind.names) for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    return StreamedSplit(list(features), kinds, names)


def _set_blocks(config: TilesConfig, split: str, column: str, rows: Any) -> list[Block]:
    """Return the files of a split as blocks, in order; each block is read by one process.

    Args:
        rows: Rows of the split, a `datasets.IterableDataset`.
    """
    images = {name for name, kind in _describe(rows).kinds.items() if kind == "image"}

    def read(block: int, skipped: int) -> Iterator[SourceTile]:
        stream = rows.shard(num_shards=rows.num_shards, index=block)
        row, entries = skipped, iter(stream.skip(skipped) if skipped else stream)
        while True:
            position = f"split {split}, file {block + 1} of {rows.num_shards}, row {row}"
            with _reading(config, position):
                entry = next(entries, None)
                if entry is None:
                    return
                data = _image_bytes(entry[column] or {}, f"{config.path}, {position}")
            row += 1
            yield SourceTile(data, {name: stored_cell(entry[name]) for name in entry if name not in images})

    def block(number: int) -> Block:
        return Block(f"file {number + 1} of {rows.num_shards}", lambda skipped: read(number, skipped))

    return [block(number) for number in range(rows.num_shards)]


def _image_bytes(value: Mapping[str, Any], where: str) -> bytes:
    """Return the bytes of an image, from its file or URL if the row does not contain them.

    Raises:
        DataError: The file cannot be opened; as without streaming, such tiles are not quarantined.
    """
    if value.get("bytes") is not None:
        return bytes(value["bytes"])
    path = value.get("path")
    if not path:
        return b""
    if "://" not in path:
        try:
            return Path(path).read_bytes()
        except OSError as error:
            if is_limit(error):
                raise
            raise DataError(
                f"cannot open the image {path}: {error.strerror or error}",
                where=where,
                fix="restore the file, or correct its permissions",
            ) from error
    import fsspec

    with fsspec.open(path, "rb") as stream:
        return bytes(stream.read())


@contextmanager
def _reading(config: TilesConfig, position: str) -> Iterator[None]:
    """Convert errors while reading a stream into a `DataError` that names the position."""
    try:
        with failed_files() as failed:
            yield
    except Exception as error:
        if isinstance(error, ClipitError | MemoryError) or is_limit(error):
            raise
        raise DataError(
            f"the data set cannot be read: {describe_error(error)}",
            where=f"{failed[-1] if failed else config.path}, {position}",
            fix=zip_advice(config.path, error)
            or "check the network or the file, and run the command again to resume after the last complete shard",
        ) from error


def _stream_webdataset(config: TilesConfig, root: Path, size: KeptSize) -> SourceTiles:
    """Read webdataset shards once, each in one process, and store their images."""
    source = read_webdataset(config, root)
    index = index_shards(config, root)
    reader = index.reader()
    bounds = np.searchsorted(index.shard_of, np.arange(len(index.shards) + 1))

    def read(first: int, last: int) -> Iterator[SourceTile]:
        for row in range(first, last):
            with _reading(config, reader.where(row)):
                data = reader.content(row)
            yield SourceTile(data, {})

    def block(number: int) -> Block:
        first, last = int(bounds[number]), int(bounds[number + 1])
        return Block(index.shard_names[number], lambda skipped: read(first + skipped, last))

    def blocks() -> Sequence[Block]:
        return [block(number) for number in range(len(index.shards))]

    inputs = {"stamps": fingerprint(list(source.stamps)), "version": 1}
    kept = keep_tiles(root, inputs, blocks, (), size, config.path)
    kept_source = replace(source, reader=kept.reader(), stamps=kept.stamps())
    return _scale(kept_source, config, kept.scales())
