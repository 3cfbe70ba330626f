"""`TileSet`: tiles with labels, splits and groups, from any source."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int, Int64, Shaped
from PIL import Image

from clipit.annotators.labelling import Annotations
from clipit.errors import DataError, as_note, counted, repeats, shortlist
from clipit.images.decode import Unreadable, attempt
from clipit.images.image_readers import Reader
from clipit.input_files.folder_files import is_unicode
from clipit.patients import patients

SPLITS = ("train", "validation", "test")
NO_LABEL = "(no label)"


@dataclass(frozen=True, eq=False)
class TileSet:
    """Tiles with their labels, splits and groups; images are read from disk on demand.

    Tile sets can be pickled, because readers open their files in the process that reads.
    """

    ids: Shaped[np.ndarray, " n"]
    """Unique ids."""
    labels: Int64[np.ndarray, " n"]
    """Class as an index into `classes`; -1 if unlabelled or hidden from training."""
    truth: Int64[np.ndarray, " n"]
    """Label before hiding; -1 if unknown."""
    splits: Shaped[np.ndarray, " n"]
    """train, validation or test."""
    groups: Shaped[np.ndarray, " n"]
    """Patient or slide; "" where unknown."""
    mpp: Float[np.ndarray, " n"]
    """Micrometres per pixel; nan where unknown."""
    classes: tuple[str, ...]
    reader: Reader
    rows: Int64[np.ndarray, " n"]
    """Row of each tile in the reader."""
    stamps: Shaped[np.ndarray, " n"]
    """Stamp of each image's content (size and modification time, or checksum), as text or bytes."""
    quarantined: tuple[str, ...] = ()
    """Ids of tiles dropped because their image cannot be decoded."""
    notes: tuple[str, ...] = ()
    """Notes on properties of these tiles that affect results."""
    where: str | None = None
    """Source table or folder, for error messages."""
    advice: str = ""
    """Advice on setting groups, if the source seems to identify patients and no groups are configured."""
    annotations: Annotations | None = None
    """Labels from several annotators, from which `labels` are derived; None if `labels` come from the source."""
    lone_slides: frozenset[str] = frozenset()
    """Groups that are slides of unknown patients, not patients."""

    def __post_init__(self) -> None:
        """Validate ids, splits and labels."""
        ids = self.ids.tolist()
        repeated = repeats(ids, lambda index: self.reader.where(int(self.rows[index])))
        if repeated:
            raise DataError(
                f"{counted(len(repeated), 'tile id occurs', 'tile ids occur')} more than once: {shortlist(repeated)}",
                where=self.where,
                fix="make the ids unique",
            )
        texts = (*ids, *self.groups.tolist())
        try:
            "".join(texts).encode()
        except UnicodeEncodeError:
            invalid = [text for text in dict.fromkeys(texts) if not is_unicode(text)]
            raise DataError(
                f"ids or groups that are not UTF-8: {shortlist(invalid)}", where=self.where, fix="rename them"
            ) from None
        unknown = sorted(set(np.unique(self.splits).tolist()) - set(SPLITS))
        if unknown:
            raise DataError(f"unknown splits: {shortlist(unknown)}", where=self.where, fix=f"use {', '.join(SPLITS)}")
        for values in (self.labels, self.truth):
            if values.size and (values.min() < -1 or values.max() >= len(self.classes)):
                raise DataError(
                    "a label is not one of the classes",
                    where=shortlist(self.classes),
                    fix="correct the label, or add its class to tiles.classes",
                )

    def __len__(self) -> int:
        """Return the number of tiles."""
        return int(self.ids.size)

    def read(self, index: int | np.integer) -> Image.Image:
        """Read the image of one tile as RGB.

        Raises:
            DataError: The image cannot be opened or decoded.
        """
        image = self.try_read(index)
        if isinstance(image, Unreadable):
            raise DataError(
                f"the image of tile {self.ids[index]} cannot be decoded ({image.reason})",
                where=self.reader.where(int(self.rows[index])),
                fix="replace the file, or set tiles.unreadable: quarantine to drop and list such tiles",
            )
        return image

    def try_read(self, index: int | np.integer) -> Image.Image | Unreadable:
        """Read the image of one tile as RGB; return an `Unreadable` if it cannot be decoded."""
        row = int(self.rows[index])
        return attempt(lambda: self.reader.read(row), tile_id=str(self.ids[index]), where=self.reader.where(row))

    @property
    def patients(self) -> Shaped[np.ndarray, " n"]:
        """Patient (or slide) of each tile, also recognised from TCGA barcodes; "" where unknown."""
        return patients(self.groups, self.ids)

    def select(self, which: Bool[np.ndarray, " n"] | Int[np.ndarray, " m"] | Sequence[int]) -> "TileSet":
        """Select tiles by a mask, or by indices in the order given."""
        chosen = np.asarray(which)
        if chosen.size == 0 and chosen.dtype != np.bool_:
            chosen = chosen.astype(np.int64)
        columns = ("ids", "labels", "truth", "splits", "groups", "mpp", "rows", "stamps")
        return replace(self, **{name: getattr(self, name)[chosen] for name in columns})

    def among(self, ids: Iterable[str]) -> Bool[np.ndarray, " n"]:
        """Return a mask of the tiles with one of these ids; `np.isin` would take quadratic time on objects."""
        selected = set(ids)
        return np.fromiter((name in selected for name in self.ids.tolist()), dtype=np.bool_, count=len(self))

    def of_split(self, name: str) -> "TileSet":
        """Select the tiles of one split; the result may be empty.

        Raises:
            DataError: The split is unknown.
        """
        if name not in SPLITS:
            raise DataError(f"unknown split {name!r}", fix=f"use {', '.join(SPLITS)}")
        return self.select(self.splits == name)

    @property
    def median_mpp(self) -> float | None:
        """Median of the known micrometres per pixel; None if all are unknown."""
        known = self.mpp[~np.isnan(self.mpp)]
        return float(np.median(known)) if known.size else None

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 over ids, splits and image stamps."""
        digest = hashlib.sha256()
        for column in (self.ids, self.splits, self.stamps):
            texts = column.tolist()
            digest.update(b"\n".join(texts) if column.dtype.kind == "S" else "\n".join(texts).encode())
            digest.update(b"\0")
        return digest.hexdigest()[:16]

    def counts(self, *, truth: bool = False) -> dict[str, dict[str, int]]:
        """Count tiles per split and class, by visible labels or, with `truth`, by labels before hiding."""
        values = self.truth if truth else self.labels
        names = (*enumerate(self.classes), (-1, NO_LABEL))
        return {
            split: {name: int((values[self.splits == split] == code).sum()) for code, name in names}
            for split in SPLITS
            if (self.splits == split).any()
        }

    def describe(self) -> str:
        """Format a summary: tiles, groups and labels per split, micrometres per pixel, and notes."""
        lines = [
            f"{counted(len(self), 'tile')}, {counted(len(self.classes), 'class', 'classes')}, "
            f"fingerprint {self.fingerprint}"
        ]
        visible, all_labels = self.counts(), self.counts(truth=True)
        for split in visible:
            in_split = self.splits == split
            groups = self.groups[in_split]
            n = np.unique(groups[groups != ""]).size
            group_text = counted(n, "group") if n else "groups unknown"
            total = sum(all_labels[split].values())
            used = total - visible[split][NO_LABEL]
            per_class = ", ".join(f"{name} {visible[split][name]}/{all_labels[split][name]}" for name in self.classes)
            lines.append(
                f"  {split}: {counted(total, 'tile')}, {group_text}, {counted(used, 'label')} used ({per_class})"
            )
        values = np.unique(self.mpp[~np.isnan(self.mpp)])
        lines.append(f"  mpp: {shortlist([f'{value:g}' for value in values]) if values.size else 'unknown'}")
        if self.quarantined:
            lines.append(f"  dropped as unreadable: {len(self.quarantined)} ({shortlist(self.quarantined)})")
        lines += [f"  {as_note(note)}" for note in self.notes]
        lines += [f"  warning: {self.advice}"] if self.advice else []
        return "\n".join(lines)
