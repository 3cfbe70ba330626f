"""What every source of tiles hands over, before splits, labels and groups are settled."""

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
"""Names of parts that need no mapping: source's name (lower case) -> ours."""


@dataclass(frozen=True)
class SourceTiles:
    """Rows of a source: one entry per tile in each sequence."""

    ids: Sequence[str]
    labels: Sequence[str]
    """Class names; "" where there is none."""
    parts: Sequence[str]
    """The source's name of the part; "" where the source knows no parts (all train)."""
    groups: Sequence[str]
    """Patient or slide; "" where unknown."""
    mpp: Sequence[float]
    """Micrometres per pixel; nan where unknown."""
    stamps: Sequence[str]
    """Changes when the file's content is replaced."""
    reader: Reader
    where: str
    """The source, for messages."""
    classes: tuple[str, ...] | None = None
    """The data set's own classes and their order; None: the names found, sorted."""
    part_names: Mapping[str, str] = field(default_factory=lambda: ALIASES)
    """The source's parts -> ours, where the configuration does not say otherwise."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Published:
    """A published data set, for the message when it is not there."""

    name: str
    url: str
    licence: str
    layout: str
    direct: str = ""
    """Its name for scripts/download.py; "" where it has no direct download."""

    def missing(self, what: str, where: object, hint: str = "") -> DataError:
        """An error that says what is missing, where it was looked for, and where to get it."""
        fix = f"get {self.name} from {self.url} (licence: {self.licence})"
        if self.direct:
            fix = (
                f"python scripts/download.py {self.direct} --to data/{self.direct} (licence: {self.licence}); or {fix}"
            )
        fix += f" and give tiles.path the folder with {self.layout}"
        return DataError(what, where=where, fix=f"{hint}; otherwise {fix}" if hint else fix)


def sorted_names(names: set[str]) -> tuple[str, ...]:
    """Names in order; by number when all of them are whole numbers."""
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


LEFT_OUT = "\0left out"
"""Stands for a label that maps to no class; no file or folder can be called so."""


def map_labels(source: SourceTiles, mapping: Mapping[str, str]) -> SourceTiles:
    """The rows with our classes in place of the source's labels; `LEFT_OUT` where a label maps to nothing.

    Tiles without a label stay without one. The data set's own order of classes, where it has one, is kept.

    Raises:
        DataError: The mapping names a label that no tile has.
    """
    if not mapping:
        return source
    found = Counter(source.labels)
    absent = sorted(set(mapping) - set(found))
    if absent:
        raise DataError(
            f"tiles.class_map names labels that do not occur: {shortlist(absent)}; "
            f"there are: {shortlist(sorted(set(found) - {''}), 20)}",
            where=source.where,
            fix="correct tiles.class_map (the source's label: our class)",
        )
    others = sorted(set(found) - set(mapping) - {""})
    told = tuple(f"{name}: {found[name]}" for name in others)
    note = f"{sum(found[name] for name in others)} tiles of labels outside tiles.class_map left out ({shortlist(told)})"
    own = None if source.classes is None else [mapping[name] for name in source.classes if name in mapping]
    return replace(
        source,
        labels=[mapping.get(name, LEFT_OUT) if name else "" for name in source.labels],
        classes=None if own is None else tuple(dict.fromkeys(own)),
        notes=(*source.notes, note) if others else source.notes,
    )
