"""Read a published data set of `DATASETS`, whose labels are in file names or in a table next to the images."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from clipit.config.run import TilesConfig
from clipit.errors import DataError, counted, counted_of, shortlist
from clipit.images.image_files import image_files, image_stamps
from clipit.images.image_readers import FileReader
from clipit.tiles.datasets import Count, DataSet
from clipit.tiles.source import ALIASES, SourceTiles
from clipit.tiles.splits import split_map
from clipit.tiles.table import read_table


def read_data_set(config: TilesConfig, data_set: DataSet) -> SourceTiles:
    """Read the tiles of a published data set; the id of a tile is its path inside the folder.

    Raises:
        DataError: The folder is missing or has unexpected content, or classes or counts differ from the published ones.
    """
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise data_set.missing(f"{data_set.title} is missing", root)
    source = _read_by_table(config, data_set, root) if data_set.table else _read_by_names(config, data_set, root)
    source = _check_counts(source, config, data_set)
    return replace(
        source,
        classes=data_set.classes or None,
        mpp=[data_set.mpp] * len(source.ids),
        notes=(*source.notes, f"known issue: {data_set.faults}") if data_set.faults else source.notes,
        split_names={**ALIASES, **data_set.split_names},
    )


def _read_by_table(config: TilesConfig, data_set: DataSet, root: Path) -> SourceTiles:
    table = root / data_set.table
    if not table.is_file():
        raise data_set.missing(f"{data_set.table} is missing", root)
    images = next((path for path in (root / "images", root / "images.zip") if path.exists()), root / "images")
    changes = {"path": str(table), "images": str(images), "columns": dict(data_set.columns)}
    return read_table(config.model_copy(update=changes))


def _read_by_names(config: TilesConfig, data_set: DataSet, root: Path) -> SourceTiles:
    """Read tiles whose path matches the pattern; a parent folder with the name of a split sets the split."""
    pattern = re.compile(data_set.pattern)
    mapping = split_map(config.splits, {**ALIASES, **data_set.split_names})
    magnification = config.magnification and config.magnification.removesuffix("X")
    listed = image_files(root, config.unreadable)
    files, others = listed.images, listed.others
    ids: list[str] = []
    labels: list[str] = []
    source_splits: list[str] = []
    groups: list[str] = []
    for file in files:
        match = pattern.search(file)
        if match is None:
            others.append(file)
            continue
        fields = match.groupdict()
        if magnification and fields["magnification"] != magnification:
            continue
        ids.append(file)
        labels.append(data_set.labels.get(fields["label"], fields["label"]))
        groups.append(fields.get("group") or "")
        folders = file.split("/")[:-1]
        source_splits.append(next((name for name in folders if name in mapping or name.lower() in mapping), ""))
    if not ids:
        raise data_set.missing(
            f"none of the {counted(len(files), 'image')} in this folder belongs to {data_set.title}", root
        )
    without_split = [name for name, split in zip(ids, source_splits, strict=True) if not split]
    if 0 < len(without_split) < len(ids):
        raise DataError(
            f"{counted_of(len(without_split), len(ids), 'tile is', 'tiles are')} outside the split folders (train, "
            f"validation, test): {shortlist(without_split, 3)}",
            where=root,
            fix="map their folder to a split in tiles.splits, or move them",
        )
    dropped = counted(
        len(others), "file does not belong to the data set and was", "files do not belong to the data set and were"
    )
    note = f"{dropped} dropped: {shortlist(others)}"
    return SourceTiles(
        ids=ids,
        labels=labels,
        source_splits=source_splits,
        groups=groups,
        mpp=[],
        stamps=image_stamps(root, ids),
        reader=FileReader(root, ids),
        where=str(root),
        notes=(*listed.notes, *((note,) if others else ())),
    )


def _check_counts(source: SourceTiles, config: TilesConfig, data_set: DataSet) -> SourceTiles:
    """Compare the classes and tile counts with the published ones.

    Raises:
        DataError: Classes or counts differ; with `tiles.check_counts: false`, a note is added instead.
    """
    expected = data_set.counts_at.get(config.magnification, ()) if config.magnification else data_set.counts
    problems = [*_missing_classes(source, data_set), *_differing_counts(source, expected)]
    if not problems:
        return source
    listed = shortlist(problems, 10)
    if config.check_counts:
        raise data_set.missing(
            f"{data_set.title} differs from the published data set: {listed}",
            source.where,
            "complete the copy, or set tiles.check_counts: false if it is a subset",
        )
    return replace(source, notes=(*source.notes, f"not as published: {listed}"))


def _missing_classes(source: SourceTiles, data_set: DataSet) -> list[str]:
    present = set(source.labels) - {""}
    if data_set.class_count is not None and len(present) != data_set.class_count:
        return [f"{counted(len(present), 'class', 'classes')} instead of {data_set.class_count}"]
    return [f"no tile of class {name}" for name in data_set.classes if name not in present]


def _differing_counts(source: SourceTiles, expected: tuple[Count, ...]) -> list[str]:
    counts: Counter[tuple[str, str]] = Counter()
    for split, label in zip(source.source_splits, source.labels, strict=True):
        counts.update({(split, label), (split, ""), ("", label), ("", "")})
    problems = []
    for split, label, number in expected:
        count = counts[split, label]
        if count != number and (not label or counts["", label]):  # missing classes are already listed
            name = " ".join(filter(None, (split, label))) or "tiles"
            difference = f"{'short' if count < number else 'over'} by {abs(number - count)}"
            problems.append(f"{name} {count} instead of {number} ({difference})")
    return problems
