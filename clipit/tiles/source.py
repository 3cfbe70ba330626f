"""Rows returned by every tile source, before labels, splits and groups are resolved."""

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from clipit.config.run import TilesConfig
from clipit.errors import DataError, counted, shortlist
from clipit.images.image_readers import Reader
from clipit.input_files.spelling import spelled_alike

ALIASES: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}
"""Split for each split name, in lower case, that is recognised without configuration."""

DROPPED = "\0dropped"
"""Placeholder for labels that map to no class; no file or folder can have this name."""


@dataclass(frozen=True)
class SourceTiles:
    """Rows of a source: one entry per tile in each sequence."""

    ids: Sequence[str]
    labels: Sequence[str]
    """Class names; "" for unlabelled tiles."""
    source_splits: Sequence[str]
    """Splits as the source names them; "" if it has none, in which case all tiles belong to train."""
    groups: Sequence[str]
    """Patients or slides; "" if unknown."""
    mpp: Sequence[float]
    """Micrometres per pixel; nan if unknown."""
    stamps: Sequence[str]
    """Stamp of each image: a string that changes if the file is replaced."""
    reader: Reader
    where: str
    """Path or id of the source, for error messages."""
    classes: tuple[str, ...] | None = None
    """Classes of the data set in its own order; None to sort the names in the data."""
    split_names: Mapping[str, str] = field(default_factory=lambda: ALIASES)
    """Default mapping from the source's split names to splits, for names that the configuration does not map."""
    notes: tuple[str, ...] = ()
    paths: Sequence[str] = ()
    """Path of each tile, if the ids are not the paths."""
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Additional columns of a table that seem to identify patients or slides, by name."""
    lone_slides: frozenset[str] = frozenset()
    """Groups that are slides of unknown patients, not patients."""


def sorted_names(names: set[str]) -> tuple[str, ...]:
    """Sort names; numerically if all of them are integers."""
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def check_class_names(names: Iterable[str], where: str) -> None:
    """Check that no classes differ only in spelling (see `spelled_alike`).

    Raises:
        DataError: Two classes differ only in spelling.
    """
    _check_spelling(
        "classes",
        names,
        where,
        "correct the labels, or map them to one class in tiles.class_map; if they are different classes, name all "
        "classes in tiles.classes",
    )


def check_group_names(names: Collection[str], where: str) -> tuple[str, ...]:
    """Check that no groups differ only in spelling, because a patient under two names may be in two splits.

    Returns:
        A warning if there are groups such as A1 and A-1, or S24-0012 and S24_12, which may also be different patients.

    Raises:
        DataError: Two groups differ only in spelling, other than in separators or leading zeros.
    """
    fix = (
        "use one spelling for each patient or slide; if they are different patients or slides, make their names less "
        "similar"
    )
    _check_spelling("groups", names, where, fix, numbered=False)
    numbered = spelled_alike(set(names))
    if not numbered:
        return ()
    return (
        "WARNING: groups that differ only in separators or leading zeros count as different patients or slides: "
        f"{shortlist(numbered)}; if they are the same, use one spelling",
    )


def check_annotator_names(names: Iterable[str], where: object) -> None:
    """Check that no annotators differ only in spelling, because one person would count as two.

    Raises:
        DataError: Two annotators differ only in spelling.
    """
    fix = "use one spelling for each annotator; if they are different people, make their names less similar"
    _check_spelling("annotators", names, where, fix)


def _check_spelling(kind: str, names: Iterable[str], where: object, fix: str, *, numbered: bool = True) -> None:
    alike = spelled_alike(set(names), numbered=numbered)
    if alike:
        raise DataError(f"{kind} with almost the same name: {shortlist(alike)}", where=where, fix=fix)


def spell_as_configured(labels: Sequence[str], config: TilesConfig) -> list[str]:
    """Spell labels like tiles.classes or tiles.class_map if only composed and decomposed accents (macOS) differ."""
    configured = {*(config.class_map or config.classes or ())}
    named = {unicodedata.normalize("NFC", name): name for name in sorted(configured)}
    forms = {label: unicodedata.normalize("NFC", label) for label in {*labels} - configured}
    respelled = {label: named[form] for label, form in forms.items() if form in named}
    return [respelled.get(label, label) for label in labels]


def map_labels(source: SourceTiles, mapping: Mapping[str, str]) -> SourceTiles:
    """Replace labels with the classes that they map to, or with `DROPPED` if they map to none.

    Unlabelled tiles stay unlabelled. The data set's own order of classes, if any, is kept.

    Raises:
        DataError: The mapping names a label that no tile has.
    """
    if not mapping:
        return source
    counts = Counter(source.labels)
    absent = sorted(set(mapping) - set(counts))
    if absent:
        raise DataError(
            f"tiles.class_map names labels that do not occur: {shortlist(absent)}; "
            f"the labels are: {shortlist(sorted(set(counts) - {''}), 20)}",
            where=source.where,
            fix="correct tiles.class_map (source label: class)",
        )
    others = sorted(set(counts) - set(mapping) - {""})
    listed = shortlist([f"{name}: {counts[name]}" for name in others])
    note = (
        f"dropped {counted(sum(counts[name] for name in others), 'tile')} with labels outside tiles.class_map "
        f"({listed})"
    )
    mapped = None if source.classes is None else [mapping[name] for name in source.classes if name in mapping]
    return replace(
        source,
        labels=[mapping.get(name, DROPPED) if name else "" for name in source.labels],
        classes=None if mapped is None else tuple(dict.fromkeys(mapped)),
        notes=(*source.notes, note) if others else source.notes,
    )
