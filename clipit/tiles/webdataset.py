"""Read tiles from shards in the format of the webdataset package: tar files of samples such as 0001.jpg, 0001.json."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipit.config.run import LabelsConfig, TilesConfig
from clipit.errors import DataError, counted, counted_of, shortlist
from clipit.images.image_set import ImageSet
from clipit.input_files.mangled_names import check_rounded
from clipit.input_files.numbered_files import check_copied_files, missing_data_files, unfinished_data_files
from clipit.input_files.spelling import check_column_spelling
from clipit.tiles.cells import check_stored, parse_mpp, resolve_missing
from clipit.tiles.groups import is_group_column
from clipit.tiles.source import ALIASES, SourceTiles
from clipit.tiles.tar_index import FIELD_PREFIX, OWN_FIELDS, TarIndex, index_shards


def read_webdataset(config: TilesConfig, root: Path | None = None, captions: str = "") -> SourceTiles:
    """Read the samples of shards; ids come from the field `tiles.columns.id` if that is set, else `<shard>/<key>`.

    `<shard>` is the shard's path relative to the innermost folder that contains all shards, so these ids depend on
    which shards are read together. Fields are the entries of a sample's JSON member, and its text members by suffix
    (`cls`, `txt`). The label is the field `label`, or `cls` if no sample has a `label`. Without a field `split`, the
    split is taken from a word such as train in a shard's path, or else in the name of the folder that contains all
    shards.

    Args:
        config: Section `tiles`.
        root: Artefact folder for the index of the shards; None to build it each time.
        captions: Field with captions to add to the index (see `index_shards`); "" for none.

    Raises:
        DataError: Shards are missing or damaged, or lack fields or images.
    """
    index = index_shards(config, root, captions)
    if not len(index):
        unread = index.unread_note and f"; {index.unread_note}"
        raise DataError(f"the shards contain no samples{unread}", where=config.path, fix="correct tiles.path")
    names = _field_names(index, config)
    members = index.members
    _check_images(index, config, members)

    def column(field: str) -> list[str]:
        if not index.has(names[field]):
            return [""] * len(index)
        return check_stored(index.text(f"{FIELD_PREFIX}{names[field]}"), names[field], config.path, members.__getitem__)

    ids = column("id") if "id" in config.columns else members
    without_id = [members[row] for row, name in enumerate(ids) if not name]
    if without_id:
        raise DataError(
            f"tiles without an id: {shortlist(without_id)}", where=config.path, fix="choose a different field"
        )
    if "id" in config.columns:
        check_rounded(ids, names["id"], members.__getitem__, config.path)
    labels, label_notes = resolve_missing(column("label"), "label", config, config.path, members.__getitem__)
    groups, group_notes = resolve_missing(column("group"), "group", config, config.path, members.__getitem__)
    splits = [_split_in(name, index.folder.name) for name in index.shard_names]
    columns = _group_fields(index)
    return SourceTiles(
        ids=ids,
        labels=labels,
        source_splits=column("split") if index.has(names["split"]) else [splits[shard] for shard in index.shard_of],
        groups=groups,
        mpp=parse_mpp(column("mpp"), config.path, members.__getitem__),
        stamps=index.image_stamps,
        reader=index.reader(),
        where=config.path,
        notes=(
            *label_notes,
            *group_notes,
            *_shard_notes(index, config.path),
            *filter(None, [index.unread_note]),
        ),
        paths=members if "id" in config.columns else (),
        columns={name: values for name, values in columns.items() if name not in names.values()},
    )


def _shard_notes(index: TarIndex, path: str) -> list[str]:
    """List shards that seem to be missing or are not read, and shards without samples.

    Raises:
        DataError: Shards have the same content.
    """
    filled = set(index.shard_of.tolist())
    empty = [str(shard) for number, shard in enumerate(index.shards) if number not in filled]
    note = f"{counted(len(empty), 'shard contains', 'shards contain')} no sample: {shortlist(empty)}" if empty else ""
    check_copied_files([index.shards[number] for number in sorted(filled)], path)
    return [*missing_data_files(path), *unfinished_data_files(path, index.shards), *([note] if note else [])]


def shard_images(path: Path) -> ImageSet:
    """List the images of a shard; their ids are `<shard>/<key>`.

    Raises:
        DataError: The shard is missing or damaged, or contains no images.
    """
    config = TilesConfig(source="webdataset", path=str(path), labels=LabelsConfig(kind="none"), unreadable="quarantine")
    index = index_shards(config, None)
    if not len(index):
        unread = index.unread_note and f"; {index.unread_note}"
        raise DataError(f"the shard contains no samples{unread}", where=path, fix="use a different shard")
    _check_images(index, config, index.members)
    notes = tuple(filter(None, [index.unread_note]))
    return ImageSet(index.members, index.image_stamps, index.reader(), str(path), notes)


def _group_fields(index: TarIndex) -> dict[str, list[str]]:
    """Return the fields that seem to identify patients or slides."""
    names = [name.removeprefix(FIELD_PREFIX) for name in index.table.column_names if name.startswith(FIELD_PREFIX)]
    return {name: index.text(f"{FIELD_PREFIX}{name}") for name in names if is_group_column(name)}


def _field_names(index: TarIndex, config: TilesConfig) -> dict[str, str]:
    """Map clipit's column names to the samples' fields."""
    by_name = {str(field): column for field, column in config.columns.items()}
    names = {field: by_name.get(field, field) for field in OWN_FIELDS}
    if "label" not in config.columns and not index.has("label"):
        names["label"] = "cls"
    labelled = config.labels.kind != "none" and config.annotations is None
    required = {key for key in config.columns if key != "path"} | ({"label"} if labelled else set())
    missing = sorted(names[key] for key in required if not index.has(names[key]))
    if missing:
        raise DataError(
            f"no sample has the fields: {', '.join(missing)}; the samples have: {index.known_fields}",
            where=config.path,
            fix="name the fields in tiles.columns, e.g. --tiles.columns.label=diagnosis",
        )
    read = {field: name for field, name in names.items() if field != "id" or field in config.columns}
    check_column_spelling(read, index.names, config.path)
    if labelled and "label" not in config.columns and index.has("label") and index.has("cls"):
        _check_one_label(index, config)
    return names


def _check_one_label(index: TarIndex, config: TilesConfig) -> None:
    """Reject shards where some samples have their class only in `cls`, or `label` contradicts `cls`."""
    from pyarrow import compute

    label, number = (index.table.column(f"{FIELD_PREFIX}{name}") for name in ("label", "cls"))
    pairs = list(zip(label.to_pylist(), number.to_pylist(), strict=True))
    contradicting = min(_deviating(pairs), _deviating([(b, a) for a, b in pairs]), key=len)
    if contradicting:
        shown = [f"{index.members[row]} (label {pairs[row][0]}, cls {pairs[row][1]})" for row in contradicting[:3]]
        raise DataError(
            f"{counted_of(len(contradicting), len(index), 'sample has', 'samples have')} fields 'label' and 'cls' that "
            f"contradict those of other samples: {shortlist(shown, 3)}",
            where=config.path,
            fix="correct the shards, or choose the field with the classes: --tiles.columns.label=label or "
            "--tiles.columns.label=cls",
        )
    rows = np.flatnonzero(compute.and_(compute.is_null(label), compute.is_valid(number)).to_numpy())
    if len(rows):
        raise DataError(
            f"{counted_of(len(rows), len(index), 'sample has', 'samples have')} a field 'cls' but no field 'label': "
            f"{shortlist([index.members[row] for row in rows[:3]], 3)}",
            where=config.path,
            fix="write the shards with one of these fields, or set --tiles.columns.label=cls, or "
            "--tiles.columns.label=label, which leaves these samples unlabelled",
        )


def _deviating(pairs: Sequence[tuple[str | None, str | None]]) -> list[int]:
    """Return the rows whose second value is not the most frequent one among the rows with the same first value."""
    complete = {row: pair for row, pair in enumerate(pairs) if None not in pair}
    usual = {pair[0]: pair for pair, _ in reversed(Counter(complete.values()).most_common())}
    return [row for row, pair in complete.items() if pair != usual[pair[0]]]


def _check_images(index: TarIndex, config: TilesConfig, members: list[str]) -> None:
    """Reject samples without an image, unless such tiles are dropped when images are decoded."""
    missing = np.flatnonzero(np.asarray(index.table.column("size")) == 0).tolist()
    if missing and (config.unreadable == "error" or len(missing) == len(index)):
        expected = f"a .{config.columns['path']} image" if "path" in config.columns else "an image"
        raise DataError(
            f"{counted_of(len(missing), len(index), 'sample lacks', 'samples lack')} {expected}: "
            f"{shortlist([members[row] for row in missing], 3)}",
            where=config.path,
            fix="name the images' suffix in tiles.columns.path, or set tiles.unreadable: quarantine to drop and list "
            "such samples",
        )


def _split_in(shard: str, folder: str) -> str:
    """Return the word for a split, such as train, in a shard's path, or else in the name of its folder.

    Return "" if there is no such word, or if the path or the folder name contains several.
    """
    for name in (shard, folder):
        words = {word for word in re.split(r"[^a-z]+", name.lower()) if word in ALIASES}
        if words:
            return words.pop() if len(words) == 1 else ""
    return ""
