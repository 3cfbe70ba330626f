"""Read the table of slide labels for bags of feature files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipit.config.data import TilesConfig
from clipit.errors import DataError, counted, repeats, shortlist
from clipit.images.decode import SUFFIXES
from clipit.images.image_readers import FileReader
from clipit.input_files.spelling import format_pairs, spelled_differently
from clipit.slides.opening import SLIDE_SUFFIXES, slide_name
from clipit.tiles.cells import resolve_missing
from clipit.tiles.groups import column_advice
from clipit.tiles.source import ALIASES, DROPPED, check_class_names, check_group_names, spell_as_configured
from clipit.tiles.splits import check_groups, drop_crossing, resolve_splits
from clipit.tiles.table import group_columns, open_table, read_columns
from clipit.tiles.tileset import TileSet

_FIELDS = frozenset({"label", "split", "group"})
_COLUMN_FIX = "give the table the columns slide, label and, if known, group (patient) and split"
_FILE_SUFFIXES = SLIDE_SUFFIXES | SUFFIXES | {".h5", ".hdf5", ".pt"}


@dataclass(frozen=True)
class ListedSlides:
    """Slides in the table that have features, and notes on all others."""

    tiles: TileSet
    notes: tuple[str, ...]


def read_slide_table(path: Path, files: Mapping[str, Path], options: TilesConfig, exclude_leaks: bool) -> ListedSlides:
    """Read the table as a tile set with one row per slide; all slides are in train if the table has no splits."""
    table = open_table(path, "mil.slides")
    # Names of columns that the table lacks are those of tiles, which the configuration may also describe.
    named = {field: name for field, name in options.columns.items() if field in _FIELDS and name in table.names}
    columns_of = {**named, "path": "slide"}
    config = TilesConfig(
        source="slides", path=str(path), columns=columns_of, classes=options.classes, class_map=options.class_map
    )
    columns = read_columns(path, config, table, ("path", "label", "split", "group"), _COLUMN_FIX)
    names = [cell if cell in files else _slide_of(cell) for cell in columns["path"]]
    empty = [""] * len(names)
    if repeated := repeats(names, table.row_name):
        raise DataError(
            f"slides are listed more than once: {shortlist(repeated)}", where=path, fix="keep one row per slide"
        )
    stated_labels, label_remarks = resolve_missing(columns["label"], "label", config, path, table.row_name)
    groups, group_remarks = resolve_missing(columns.get("group", empty), "group", config, path, table.row_name)
    labels, map_remarks = _map_labels(spell_as_configured(stated_labels, options), options.class_map, path)
    classes = _resolve_classes(labels, options.classes or (), path)
    spelling_remarks = check_group_names([group for group in groups if group], str(path))
    advice = column_advice(groups, names, group_columns(path, table, config), "rename it to group")
    stated_splits = columns.get("split", empty)
    splits = resolve_splits(stated_splits, options.splits, ALIASES, str(path), options.other_parts)
    other_splits = [stated for stated, split in zip(stated_splits, splits, strict=True) if not split]
    _check_names(names, files, path)
    has_features = np.array([name in files for name in names], dtype=bool)
    codes = np.array([classes.index(label) if label in classes else -1 for label in labels], dtype=np.int64)
    tiles = TileSet(
        ids=np.array(names, dtype=object),
        labels=codes,
        truth=codes.copy(),
        splits=np.array([split or "train" for split in splits], dtype="<U10"),  # others are dropped below
        groups=np.array(groups, dtype=object),
        mpp=np.full(len(names), np.nan),
        classes=classes,
        reader=FileReader(Path(), [str(files.get(name, "")) for name in names]),
        rows=np.arange(len(names), dtype=np.int64),
        stamps=np.array([""] * len(names)),
        where=str(path),
    )
    kept = np.array([bool(split) and label != DROPPED for split, label in zip(splits, labels, strict=True)], dtype=bool)
    if not (kept & has_features).any():
        raise DataError(
            "no slide with features remains after mapping splits and labels",
            where=path,
            fix="correct tiles.splits or tiles.class_map",
        )
    usable, leaking = drop_crossing(tiles.select(kept)) if exclude_leaks else (tiles.select(kept), 0)
    check_groups(usable)
    leaks = counted(leaking, "slide of a patient who is", "slides of patients who are")
    notes = (
        *([f"dropped {leaks} also in a later split (leaks.policy: exclude)"] if leaking else []),
        *label_remarks,
        *map_remarks,
        *group_remarks,
        *spelling_remarks,
        *([f"WARNING: {advice}"] if advice else []),
        *_count_dropped(names, other_splits, files),
    )
    return ListedSlides(usable.select(usable.among([name for name in names if name in files])), notes)


def _resolve_classes(labels: Sequence[str], classes: Sequence[str], path: Path) -> tuple[str, ...]:
    """Return the classes of the labels: the configured ones, or else all labels in alphabetical order.

    Raises:
        DataError: A label is not a configured class, or labels differ only in spelling.
    """
    present = {label for label in labels if label and label != DROPPED}
    if not classes:
        check_class_names([label for label in labels if label], str(path))
        return tuple(sorted(present))
    if unknown := sorted(present.difference(classes)):
        raise DataError(
            f"labels that are not classes: {shortlist(unknown)}", where=path, fix="add them to tiles.classes"
        )
    return tuple(classes)


def _check_names(names: Sequence[str], files: Mapping[str, Path], path: Path) -> None:
    """Check that the slides in the table match the feature files.

    Raises:
        DataError: No slide has features, or names differ only in spelling.
    """
    listed = {*names}
    if alike := spelled_differently(listed - files.keys(), files.keys() - listed):
        raise DataError(
            "slide names in the table differ from those of the feature files only in spelling, such as leading zeros, "
            f"which spreadsheets drop: {shortlist(format_pairs(alike))}",
            where=path,
            fix="spell the names in the slide column like those of the feature files; if they are different slides, "
            "remove the rows or the files",
        )
    if listed.isdisjoint(files):
        raise DataError(
            f"no slide in the table has features; the table lists {shortlist(sorted(listed))}, and the feature files "
            f"are named {shortlist(sorted(files))}",
            where=path,
            fix="name the .h5 files after the slides in the slide column",
        )


def _count_dropped(names: Sequence[str], other_splits: Sequence[str], files: Mapping[str, Path]) -> list[str]:
    """Return notes on slides in other splits, slides without features, and feature files without a row."""
    notes = []
    if other_splits:
        counts = Counter(stated or "(none)" for stated in other_splits)
        listed = shortlist([f"{stated}: {count}" for stated, count in sorted(counts.items())])
        notes.append(f"dropped {counted(counts.total(), 'slide')} in other splits ({listed})")
    if without_features := [name for name in names if name not in files]:
        count = counted(len(without_features), "slide")
        notes.append(f"dropped {count} without features: {shortlist(without_features)}")
    if unlisted := sorted(files.keys() - {*names}):
        notes.append(
            f"dropped {counted(len(unlisted), 'feature file')} without a row in the table: {shortlist(unlisted)}"
        )
    return notes


def _map_labels(labels: Sequence[str], class_map: Mapping[str, str], path: Path) -> tuple[list[str], tuple[str, ...]]:
    """Map labels to classes; labels without a class become `DROPPED`, and a note counts them.

    Raises:
        DataError: The mapping names a label that no slide has.
    """
    if not class_map:
        return list(labels), ()
    counts = Counter(label for label in labels if label)
    if absent := sorted(class_map.keys() - counts.keys()):
        raise DataError(
            f"tiles.class_map names labels that do not occur: {shortlist(absent)}; the labels are "
            f"{shortlist(sorted(counts), 20)}",
            where=path,
            fix="correct tiles.class_map (label in the table: class)",
        )
    mapped = [class_map.get(label, DROPPED) if label else "" for label in labels]
    others = {label: count for label, count in sorted(counts.items()) if label not in class_map}
    listed = shortlist([f"{label}: {count}" for label, count in others.items()])
    note = f"dropped {counted(sum(others.values()), 'slide')} with labels outside tiles.class_map ({listed})"
    return mapped, (note,) if others else ()


def _slide_of(cell: str) -> str:
    """Return the slide name in a cell: the file name without the suffix of a slide or feature file."""
    path = Path(cell.replace("\\", "/"))
    return slide_name(path) if path.suffix.lower() in _FILE_SUFFIXES else path.name
