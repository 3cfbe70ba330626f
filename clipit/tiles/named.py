"""Published data sets through generic readers: what a file's path says, or a table beside the images."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from clipit.config.run import TilesConfig
from clipit.errors import DataError, explain, shortlist
from clipit.tiles.counts import check_counts
from clipit.tiles.datasets import DATASETS, DataSet
from clipit.tiles.folders import image_files
from clipit.tiles.readers import FileReader, file_stamp
from clipit.tiles.source import ALIASES, Published, SourceTiles
from clipit.tiles.splits import part_map
from clipit.tiles.table import read_table


def read_data_set(config: TilesConfig, row: DataSet) -> SourceTiles:
    """Tiles of a published data set by the rules of its row; the id of a tile is its path inside the folder.

    Raises:
        DataError: The folder is missing or holds something else, or classes or counts are not the published ones.
    """
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise published(row).missing(f"{row.title} is not there", root)
    found = _by_table(config, row, root) if row.table else _by_names(config, row, root)
    found = check_counts(found, config, row, published(row))
    mpp = [row.mpp or float("nan")] * len(found.ids)
    notes = (*found.notes, f"known fault: {row.faults}") if row.faults else found.notes
    return replace(found, classes=row.classes or None, mpp=mpp, notes=notes, part_names=_part_names(row))


def published(row: DataSet) -> Published:
    """The row, for the message when the set is not there."""
    name = next((name for name, other in DATASETS.items() if other == row), "") if row.files else ""
    return Published(name=row.title, url=row.page, licence=row.licence, layout=row.layout, direct=name)


def _part_names(row: DataSet) -> Mapping[str, str]:
    return {**ALIASES, **row.parts}


def _by_table(config: TilesConfig, row: DataSet, root: Path) -> SourceTiles:
    table = root / row.table
    if not table.is_file():
        raise published(row).missing(f"{row.table} is not there", root)
    images = next((folder for folder in (root / "images", root / "images.zip") if folder.exists()), root / "images")
    changes = {"path": str(table), "images": str(images), "columns": dict(row.columns)}
    return read_table(config.model_copy(update=changes))


def _by_names(config: TilesConfig, row: DataSet, root: Path) -> SourceTiles:
    """Tiles whose path fits the row's pattern; a folder on the way that is called like a part makes it the part."""
    pattern = re.compile(row.pattern)
    mapping = part_map(config.splits, _part_names(row))
    wanted = config.magnification and config.magnification.removesuffix("X")
    files, strangers = image_files(root)
    ids: list[str] = []
    labels: list[str] = []
    parts: list[str] = []
    groups: list[str] = []
    for file in files:
        match = pattern.search(file)
        if match is None:
            strangers.append(file)
            continue
        said = match.groupdict()
        if wanted and said["magnification"] != wanted:
            continue
        ids.append(file)
        labels.append(row.labels.get(said["label"], said["label"]))
        groups.append(said.get("group") or "")
        folders = file.split("/")[:-1]
        parts.append(next((name for name in folders if name in mapping or name.lower() in mapping), ""))
    if not ids:
        raise published(row).missing(f"no tile of {row.title} among the {len(files)} images here", root)
    notes = (f"{len(strangers)} files do not belong to it and were left out: {shortlist(strangers)}",)
    return SourceTiles(
        ids=ids,
        labels=labels,
        parts=_settled(parts, ids, root),
        groups=groups,
        mpp=[],
        stamps=[file_stamp(root / name) for name in ids],
        reader=FileReader(root, ids),
        where=str(root),
        notes=notes if strangers else (),
    )


def _settled(parts: list[str], ids: list[str], root: Path) -> list[str]:
    loose = [name for name, part in zip(ids, parts, strict=True) if not part]
    if loose and len(loose) < len(ids):
        raise DataError(
            explain(
                f"{len(loose)} tiles lie in no folder of a part (train, validation, test), the others do: "
                f"{shortlist(loose, 3)}",
                where=root,
                fix="name their folder in tiles.splits (ours: theirs), or move them",
            )
        )
    return parts
