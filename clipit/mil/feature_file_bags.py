"""Bags of features computed by TRIDENT or CLAM (one HDF5 file per slide), with a table of slide labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from clipit.config.data import TilesConfig
from clipit.errors import DataError, counted, shortlist
from clipit.images.image_readers import file_stamp
from clipit.mil.mil_bags import MilBags
from clipit.mil.slide_table import read_slide_table
from clipit.mil.tile_store_bags import Unit, common_labels, label_notes
from clipit.output_files.artifacts import fingerprint
from clipit.pairing.patient_spelling import misspelled_splits
from clipit.patients import patients
from clipit.stores.slide_feature_checks import (
    check_copies,
    check_encoders,
    check_owners,
    count_repeated,
    describe_scales,
    describe_settings,
)
from clipit.stores.slide_features import find_copied_slides, find_feature_files, open_slide_features
from clipit.tiles.hold_out import hold_out_test, hold_out_validation
from clipit.tiles.tileset import TileSet


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
    features: Path,
    table: Path,
    unit: Unit,
    held_out: HeldOut,
    tiles: TilesConfig | None = None,
    *,
    exclude_leaks: bool = False,
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
        tiles: Section `tiles`; its keys classes, class_map, splits, other_parts and columns (label, group, split) apply
            to the table. None for the defaults.
        exclude_leaks: Whether to drop training slides of a patient in several splits, instead of raising an error.

    Raises:
        ConfigError: A split is named twice.
        DataError: A file or the table is invalid, no slide in the table has features, slides have features of different
            dimensions, a slide is listed twice, names of classes or patients differ only in spelling, or a patient or
            copies of one slide are in two splits.
    """
    files = {path.stem: path for path in find_feature_files([features])}
    listed = read_slide_table(table, files, tiles or TilesConfig(source="slides", path=str(table)), exclude_leaks)
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
