"""Bags of features computed by TRIDENT or CLAM (one HDF5 file per slide), with a table of slide labels."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from clipit.config.data import TilesConfig
from clipit.errors import DataError, counted, repeats, shortlist
from clipit.images.decode import SUFFIXES
from clipit.images.image_readers import FileReader, file_stamp
from clipit.input_files.spelling import format_pairs, spelled_differently
from clipit.mil.mil_bags import MilBags
from clipit.mil.tile_store_bags import Unit, common_labels, label_notes
from clipit.output_files.artifacts import fingerprint
from clipit.pairing.patient_spelling import misspelled_splits
from clipit.patients import patients
from clipit.slides.opening import SLIDE_SUFFIXES, slide_name
from clipit.stores.slide_feature_checks import (
    check_copies,
    check_encoders,
    check_owners,
    count_repeated,
    describe_scales,
    describe_settings,
)
from clipit.stores.slide_features import find_copied_slides, find_feature_files, open_slide_features
from clipit.tiles.cells import resolve_missing
from clipit.tiles.groups import column_advice
from clipit.tiles.hold_out import hold_out_test, hold_out_validation
from clipit.tiles.source import ALIASES, DROPPED, check_class_names, check_group_names, spell_as_configured
from clipit.tiles.splits import check_groups, resolve_splits
from clipit.tiles.table import group_columns, open_table, read_columns
from clipit.tiles.tileset import TileSet

_COLUMN_FIX = "give the table the columns slide, label and, if known, group (patient) and split"
_FILE_SUFFIXES = SLIDE_SUFFIXES | SUFFIXES | {".h5", ".hdf5", ".pt"}


@dataclass(frozen=True)
class FeatureFile:
    """Features of one slide.

    Attributes:
        path: HDF5 file.
        tiles: Number of tiles with distinct positions.
        repeated: Number of dropped tiles, each at the position of an earlier tile.
    """

    path: Path
    tiles: int
    repeated: int = 0


@dataclass(frozen=True)
class FeatureFileReader:
    """Features of bags in HDF5 files."""

    bags: Sequence[Sequence[FeatureFile]]
    dim: int

    def fingerprint(self) -> str:
        """Compute a fingerprint of the names, sizes and modification times of the files."""
        return fingerprint(
            [
                [[file.path.name, file_stamp(file.path), *([file.repeated] if file.repeated else [])] for file in bag]
                for bag in self.bags
            ]
        )

    def sizes(self) -> Int64[np.ndarray, " b"]:
        """Return the number of instances of each bag."""
        return np.array([sum(file.tiles for file in bag) for bag in self.bags], dtype=np.int64)

    def features(self, row: int) -> Float32[np.ndarray, "n d"]:
        """Read the features of one bag."""
        return np.concatenate([_vectors(file) for file in self.bags[row]])

    def ids(self, row: int) -> list[str]:
        """Return the ids of the instances of one bag, `slide:x_y`."""
        return [name for file in self.bags[row] for name in _ids(file)]


def _vectors(file: FeatureFile) -> Float32[np.ndarray, "n d"]:
    slide = open_slide_features(file.path)
    return slide.vectors()[slide.first_rows] if file.repeated else slide.vectors()


def _ids(file: FeatureFile) -> list[str]:
    slide = open_slide_features(file.path)
    ids = slide.ids
    return [ids[row] for row in slide.first_rows.tolist()] if file.repeated else ids


@dataclass(frozen=True)
class HeldOut:
    """Fractions of the patients to hold out for each split that the slide table lacks.

    Attributes:
        validation: Fraction of the patients for validation.
        test: Fraction of the patients for testing.
    """

    validation: float = 0.2
    test: float = 0.2
    seed: int = 0


def bags_of_files(
    features: Path, table: Path, unit: Unit, held_out: HeldOut, tiles: TilesConfig | None = None
) -> MilBags:
    """Read bags from feature files and a table of slide labels.

    Slides without features, features without a row in the table, slides without tiles, and repeated tiles are dropped
    and counted in the notes. The notes also list slides with the same features, and tile settings and scales of the
    vectors that differ between slides.

    Args:
        features: Folder of .h5 files named after the slides, or one such file.
        table: Table with the columns `slide`, `label`, and optionally `group` (patient) and `split`.
        unit: Unit of a bag; a slide without a known patient counts as a separate patient.
        held_out: Fractions of the patients to hold out for each split that the table lacks.
        tiles: Section `tiles`; its keys classes, class_map, splits and other_parts apply to the table. None for the
            defaults.

    Raises:
        ConfigError: A split is named twice.
        DataError: A file or the table is invalid, no slide in the table has features, slides have features of different
            dimensions, a slide is listed twice, names of classes or patients differ only in spelling, or a patient or
            copies of one slide are in two splits.
    """
    files = {path.stem: path for path in find_feature_files([features])}
    listed = _read_slides(table, files, tiles or TilesConfig(source="slides", path=str(table)))
    opened_files = _open_files(files, listed.tiles, features)
    opened, dim = opened_files.files, opened_files.dim
    counts = np.array([opened[str(name)].tiles for name in listed.tiles.ids.tolist()])
    slides = _split(listed.tiles.select(counts > 0), held_out, table)
    slide_names = [str(name) for name in slides.ids.tolist()]
    split_of, label_of = (
        dict(zip(slide_names, values.tolist(), strict=True)) for values in (slides.splits, slides.truth)
    )
    notes = [
        *listed.notes,
        *slides.notes,
        *misspelled_splits(slides, "slide"),
        *opened_files.notes,
        *check_copies(opened_files.copies, split_of, label_of, table),
    ]
    if not counts.all():
        without_tiles = shortlist([str(name) for name in listed.tiles.ids[counts == 0].tolist()])
        count = counted(int((counts == 0).sum()), "slide without tiles", "slides without tiles")
        notes.append(f"dropped {count}: {without_tiles}")
    owners = patients(slides.groups, slides.ids)
    slide_owners = np.array([f"slide {name}" for name in slides.ids.tolist()], dtype=object)
    names = slides.ids if unit == "slide" else np.where(owners == "", slide_owners, owners)
    unique, first, member = np.unique(names.astype(str), return_index=True, return_inverse=True)
    labels, mixed = common_labels(slides.truth, member, len(unique))
    files_of_bag: list[list[FeatureFile]] = [[] for _ in unique]
    for bag, name in zip(member.tolist(), slides.ids.tolist(), strict=True):
        files_of_bag[bag].append(opened[str(name)])
    bags = MilBags(
        names=unique.astype(object),
        labels=labels,
        patients=owners[first],
        splits=slides.splits[first],
        classes=slides.classes,
        reader=FeatureFileReader(files_of_bag, dim),
        rows=np.arange(len(unique), dtype=np.int64),
        notes=tuple(notes),
        where=str(table),
    )
    return replace(bags, notes=(*bags.notes, *label_notes(bags, mixed)))


@dataclass(frozen=True)
class _ListedSlides:
    """Slides in the table that have features, and notes on all others."""

    tiles: TileSet
    notes: tuple[str, ...]


def _read_slides(path: Path, files: Mapping[str, Path], options: TilesConfig) -> _ListedSlides:
    """Read the table as a tile set with one row per slide; all slides are in train if the table has no splits."""
    config = TilesConfig(
        source="slides",
        path=str(path),
        columns={"path": "slide"},
        classes=options.classes,
        class_map=options.class_map,
    )
    table = open_table(path)
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
    check_groups(tiles.select(kept))
    notes = (
        *label_remarks,
        *map_remarks,
        *group_remarks,
        *spelling_remarks,
        *([f"WARNING: {advice}"] if advice else []),
        *_count_dropped(names, other_splits, files),
    )
    return _ListedSlides(tiles.select(kept & has_features), notes)


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


@dataclass(frozen=True)
class _OpenedFiles:
    """Feature files of the listed slides.

    Attributes:
        copies: Groups of slides with the same features.
        notes: Remarks on repeated tiles, settings and scales.
    """

    files: dict[str, FeatureFile]
    dim: int
    copies: Sequence[Sequence[str]]
    notes: tuple[str, ...]


def _open_files(files: Mapping[str, Path], listed: TileSet, where: Path) -> _OpenedFiles:
    """Check the files of all listed slides, and compare them with each other."""
    slides = [open_slide_features(files[str(name)]) for name in listed.ids.tolist()]
    if len({slide.dim for slide in slides}) > 1:
        dimensions = shortlist([f"{slide.slide} ({slide.dim})" for slide in slides], 6)
        raise DataError(
            f"slides have features of different dimensions: {dimensions}",
            where=where,
            fix="compute the features of all slides with the same model",
        )
    if not any(map(len, slides)):
        raise DataError("no slide has tiles", where=where, fix="use slides with tissue")
    check_owners(slides, where)
    check_encoders(slides, where)
    repeated = {slide.slide: count_repeated(slide) for slide in slides}
    opened = {
        slide.slide: FeatureFile(slide.path, len(slide) - repeated[slide.slide], repeated[slide.slide])
        for slide in slides
    }
    with_repeats = [f"{name}: {count}" for name, count in repeated.items() if count]
    total = (
        f"dropped {counted(sum(repeated.values()), 'repeated tile')} in {counted(len(with_repeats), 'slide')}: "
        f"{shortlist(with_repeats)}"
    )
    notes = [total] if with_repeats else []
    notes += [*describe_settings(slides), *describe_scales(slides)]
    return _OpenedFiles(opened, slides[0].dim, find_copied_slides(slides), tuple(notes))


def _split(slides: TileSet, held_out: HeldOut, table: Path) -> TileSet:
    """Hold out a test and a validation split by patient, unless the table has them.

    Raises:
        DataError: There are too few patients.
    """
    try:
        if not (slides.splits == "test").any():
            slides = hold_out_test(slides, held_out.test, held_out.seed)
        if not (slides.splits == "validation").any():
            slides = hold_out_validation(slides, held_out.validation, held_out.seed)
    except DataError as error:
        raise DataError(
            f"too few patients to hold any out; the table has {counted(len(slides), 'slide')} with features",
            where=table,
            fix="add slides, add a split column, or raise mil.validation_fraction or mil.test_fraction",
        ) from error
    return slides
