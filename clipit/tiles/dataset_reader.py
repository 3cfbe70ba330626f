"""Read a published data set by its entry in `DATASETS`: from file names, or from a table beside the images."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from clipit.config.run import TilesConfig
from clipit.errors import DataError, shortlist
from clipit.tiles.datasets import DATASETS, Count, DataSet
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
            f"{len(loose)} tiles lie in no folder of a part (train, validation, test), the others do: "
            f"{shortlist(loose, 3)}",
            where=root,
            fix="name their folder in tiles.splits (ours: theirs), or move them",
        )
    return parts


def check_counts(source: SourceTiles, config: TilesConfig, row: DataSet, published: Published) -> SourceTiles:
    """Compare with the row; with `tiles.check_counts: false` a difference becomes a note.

    Raises:
        DataError: A class is missing, or there are more or fewer tiles than published; names the classes.
    """
    expected = row.counts_at.get(config.magnification, ()) if config.magnification else row.counts
    problems = [*_classes(source, row), *_numbers(source, expected)]
    if not problems:
        return source
    if config.check_counts:
        raise published.missing(
            f"not {row.title} as published: {shortlist(problems, 10)}",
            source.where,
            "complete the copy, or say tiles.check_counts: false if it was made smaller on purpose",
        )
    return replace(source, notes=(*source.notes, f"not as published: {shortlist(problems, 10)}"))


def _classes(source: SourceTiles, row: DataSet) -> list[str]:
    found = set(source.labels) - {""}
    if row.class_count is not None and len(found) != row.class_count:
        return [f"{len(found)} classes of {row.class_count}"]
    return [f"no tile of class {name}" for name in row.classes if name not in found]


def _numbers(source: SourceTiles, expected: tuple[Count, ...]) -> list[str]:
    found: Counter[tuple[str, str]] = Counter()
    for part, label in zip(source.parts, source.labels, strict=True):
        for key in {(part, label), (part, ""), ("", label), ("", "")}:
            found[key] += 1
    present = set(source.labels)
    problems = []
    for part, label, number in expected:
        count = found[part, label]
        if count != number and (not label or label in present):  # a missing class is said already
            name = " ".join(filter(None, (part, label))) or "tiles"
            problems.append(f"{name} {count} instead of {number} ({'short by' if count < number else 'over by'} "
                            f"{abs(number - count)})")  # fmt: skip
    return problems
