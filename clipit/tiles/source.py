"""Rows that every tile source returns, before labels, splits and groups are resolved."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from clipit.errors import DataError, shortlist
from clipit.tiles.readers import Reader

ALIASES: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}
"""Part names that need no mapping: the source's name in lower case -> our split."""

DROPPED = "\0dropped"
"""Stands for a label that maps to no class; no file or folder can have this name."""


@dataclass(frozen=True)
class SourceTiles:
    """Rows of a source: one entry per tile in each sequence."""

    ids: Sequence[str]
    labels: Sequence[str]
    """Class names; "" where there is none."""
    parts: Sequence[str]
    """The source's name of the part; "" where the source has no parts (all train)."""
    groups: Sequence[str]
    """Patient or slide; "" where unknown."""
    mpp: Sequence[float]
    """Micrometres per pixel; nan where unknown."""
    stamps: Sequence[str]
    """Stamp of each image's content; changes when the file is replaced."""
    reader: Reader
    where: str
    """Path or id of the source, for messages."""
    classes: tuple[str, ...] | None = None
    """The data set's own classes in order; None: the names found, sorted."""
    part_names: Mapping[str, str] = field(default_factory=lambda: ALIASES)
    """The source's parts -> our splits, unless the configuration maps them."""
    notes: tuple[str, ...] = ()


def sorted_names(names: set[str]) -> tuple[str, ...]:
    """Names in order; in numerical order when all are whole numbers."""
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def map_labels(source: SourceTiles, mapping: Mapping[str, str]) -> SourceTiles:
    """Replace the source's labels by our classes, and labels that map to nothing by `DROPPED`.

    Unlabelled tiles stay unlabelled. The data set's own order of classes, if it has one, is kept.

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
            f"there are: {shortlist(sorted(set(counts) - {''}), 20)}",
            where=source.where,
            fix="correct tiles.class_map (the source's label: our class)",
        )
    others = sorted(set(counts) - set(mapping) - {""})
    listed = shortlist([f"{name}: {counts[name]}" for name in others])
    note = f"{sum(counts[name] for name in others)} tiles of labels outside tiles.class_map dropped ({listed})"
    mapped = None if source.classes is None else [mapping[name] for name in source.classes if name in mapping]
    return replace(
        source,
        labels=[mapping.get(name, DROPPED) if name else "" for name in source.labels],
        classes=None if mapped is None else tuple(dict.fromkeys(mapped)),
        notes=(*source.notes, note) if others else source.notes,
    )
