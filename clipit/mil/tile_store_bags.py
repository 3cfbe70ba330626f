"""Bags of a workspace's tiles, with features from tile stores."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int64, Shaped

from clipit.errors import DataError, counted, shortlist
from clipit.evaluation.predictions import NO_LABEL
from clipit.mil.mil_bags import MilBags
from clipit.output_files.artifacts import fingerprint
from clipit.patients import patients
from clipit.slides.grid import parse_tile_id
from clipit.stores.embed import Store
from clipit.tiles.tileset import TileSet

Unit = Literal["slide", "patient"]


@dataclass(frozen=True)
class StoreReader:
    """Features of bags in stores, read from memory-mapped shards.

    Attributes:
        positions: Row in the store of each instance, bag by bag.
        first: Offset of each bag's first instance in `positions`, followed by the total number of instances.
        instance_ids: Ids of the instances, in the order of `positions`.
    """

    stores: Mapping[str, Store]
    splits: Shaped[np.ndarray, " b"]
    positions: Int64[np.ndarray, " n"]
    first: Int64[np.ndarray, " b1"]
    instance_ids: Shaped[np.ndarray, " n"]

    @property
    def dim(self) -> int:
        """Dimension of the features."""
        return next(iter(self.stores.values())).dim

    def fingerprint(self) -> str:
        """Compute a fingerprint of the stores and of the assignment of their rows to bags."""
        rows = hashlib.sha256(self.positions.tobytes() + self.first.tobytes()).hexdigest()
        return fingerprint([{name: store.fingerprint for name, store in self.stores.items()}, rows])

    def sizes(self) -> Int64[np.ndarray, " b"]:
        """Return the number of instances of each bag."""
        return np.diff(self.first)

    def features(self, row: int) -> Float32[np.ndarray, "n d"]:
        """Read the features of one bag."""
        return self.stores[str(self.splits[row])].rows(self.positions[self.first[row] : self.first[row + 1]])

    def ids(self, row: int) -> list[str]:
        """Return the ids of the instances of one bag."""
        return [str(name) for name in self.instance_ids[self.first[row] : self.first[row + 1]].tolist()]


def bags_of_tiles(tiles: TileSet, stores: Mapping[str, Store], unit: Unit) -> MilBags:
    """Group the tiles of a workspace into bags.

    With `slide`, tiles whose ids name their slide (`slide@x,y,edge`) form one bag per slide, and other tiles one bag
    per group. With `patient`, all tiles of a patient form one bag. The label of a bag is the class that all of its
    labelled tiles share. A bag with tiles of several classes has no label, and is counted in the notes.

    Args:
        tiles: Tiles with all labels (`truth`), splits and groups.

    Raises:
        DataError: Tiles belong to no slide or patient, or a slide or patient is in two splits.
    """
    where = tiles.where or "tiles"
    owners = patients(tiles.groups, tiles.ids)
    names = owners if unit == "patient" else _slides(tiles)
    without_unit = [str(tiles.ids[row]) for row in np.flatnonzero(names == "").tolist()]
    if without_unit:
        raise DataError(
            f"{counted(len(without_unit), 'tile belongs', 'tiles belong')} to no {unit}: {shortlist(without_unit)}",
            where=where,
            fix="name their slides or patients in the group column, or set tiles.group_pattern",
        )
    keys = np.array([f"{split}\0{name}" for split, name in zip(tiles.splits, names, strict=True)], dtype=object)
    unique, member = np.unique(keys, return_inverse=True)
    order = np.argsort(member, kind="stable")
    first = np.concatenate([[0], np.bincount(member, minlength=len(unique)).cumsum()]).astype(np.int64)
    positions = np.empty(len(tiles), dtype=np.int64)
    for split, store in stores.items():
        inside = np.flatnonzero(tiles.splits == split)
        positions[inside] = store.positions(tiles.ids[inside])
    first_tiles = order[first[:-1]]
    labels, mixed = common_labels(tiles.truth, member, len(unique))
    reader = StoreReader(
        {split: store for split, store in stores.items() if (tiles.splits == split).any()},
        tiles.splits[first_tiles],
        positions[order],
        first,
        tiles.ids[order],
    )
    bags = MilBags(
        names=names[first_tiles],
        labels=labels,
        patients=owners[first_tiles],
        splits=tiles.splits[first_tiles],
        classes=tiles.classes,
        reader=reader,
        rows=np.arange(len(unique), dtype=np.int64),
        notes=tiles.notes,
        where=where,
        lone_slides=tiles.lone_slides,
    )
    return replace(bags, notes=(*bags.notes, *label_notes(bags, mixed)))


def _slides(tiles: TileSet) -> Shaped[np.ndarray, " n"]:
    """Return the slide named in each tile's id, or the tile's group if the id names none."""

    def slide(name: str, group: str) -> str:
        try:
            return parse_tile_id(name)[0]
        except DataError:
            return group

    pairs = zip(tiles.ids.tolist(), tiles.groups.tolist(), strict=True)
    return np.array([slide(str(name), str(group)) for name, group in pairs], dtype=object)


def common_labels(
    truth: Int64[np.ndarray, " n"], member: Int64[np.ndarray, " n"], bags: int
) -> tuple[Int64[np.ndarray, " b"], Int64[np.ndarray, " m"]]:
    """Return the label shared by all labelled instances of each bag, or -1, and the rows of bags with mixed labels."""
    known = truth != NO_LABEL
    lowest = np.full(bags, np.iinfo(np.int64).max)
    highest = np.full(bags, NO_LABEL, dtype=np.int64)
    np.minimum.at(lowest, member[known], truth[known])
    np.maximum.at(highest, member[known], truth[known])
    mixed = (highest != NO_LABEL) & (lowest != highest)
    return np.where(mixed, NO_LABEL, highest).astype(np.int64), np.flatnonzero(mixed).astype(np.int64)


def label_notes(bags: MilBags, mixed: Int64[np.ndarray, " m"]) -> list[str]:
    """Describe bags without a label; an empty list if all have one."""
    notes = []
    if len(mixed):
        listed = shortlist([str(name) for name in bags.names[mixed].tolist()])
        notes.append(
            f"{counted(len(mixed), 'bag has', 'bags have')} no label, because their tiles or slides have different "
            f"classes: {listed}"
        )
    unlabelled = int((bags.labels == NO_LABEL).sum()) - len(mixed)
    if unlabelled:
        notes.append(f"{counted(unlabelled, 'bag has', 'bags have')} no label")
    return notes
