"""Hold out training tiles for validation, testing or folds, by group and stratified by class."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from clipit.errors import DataError, counted, shortlist
from clipit.patients import patients
from clipit.tiles.splits import shuffled
from clipit.tiles.tileset import TileSet

_NOTED = 0.05  # difference between the actual and the requested share above which a note states both
_UNKNOWN_GROUPS = "groups unknown: tiles of one patient may be on both sides, so {split} scores may be too high"


def hold_out_validation(
    tiles: TileSet, fraction: float, seed: int, *, blind: bool = False, fix: str | None = None
) -> TileSet:
    """Move about `fraction` of the training tiles to validation (see `_hold_out`), ignoring labels if `blind`.

    Args:
        fix: Fix to show in the error, for tiles that are not configured in the section `tiles`.

    Raises:
        DataError: No group could be moved.
    """
    if not blind:
        return _hold_out(tiles, "validation", fraction, seed, fix)
    held_out = _hold_out(replace(tiles, truth=np.full_like(tiles.truth, -1)), "validation", fraction, seed, fix)
    return replace(held_out, truth=tiles.truth)


def hold_out_test(tiles: TileSet, fraction: float, seed: int) -> TileSet:
    """Move about `fraction` of the training tiles to the test split (see `_hold_out`).

    Raises:
        DataError: No group could be moved.
    """
    return _hold_out(tiles, "test", fraction, seed)


def hold_out_fold(tiles: TileSet, folds: int, fold: int, seed: int) -> TileSet:
    """Move one of several folds of the training tiles to the test split.

    Every training tile belongs to exactly one fold, and all tiles of a group to the same fold. The groups of each class
    are sorted by size, the largest first, with ties in random order; each goes to the fold with the fewest tiles of its
    class. The folds depend on the names of the groups and the seed, not on the order of the rows.

    Args:
        tiles: Tiles without a test split.
        folds: Number of folds.
        fold: Fold that becomes the test split, from 0.
        seed: Seed for the order of the groups.

    Raises:
        DataError: There are fewer groups than folds.
    """
    train_rows = np.flatnonzero(tiles.splits == "train").tolist()
    name_of = _group_names(tiles, train_rows)
    members = _members(name_of, train_rows)
    if len(members) < folds:
        raise DataError(
            f"{folds} folds need at least {folds} groups; the training split has {len(members)}, with "
            f"{counted(len(train_rows), 'tile')}",
            where=tiles.where,
            fix="lower tiles.folds",
        )
    fold_of: dict[str, int] = {}
    totals = [0] * folds
    for _, stratum in sorted(_strata(tiles, members).items()):
        sizes = [0] * folds
        order = [stratum[position] for position in shuffled(stratum, seed, "folds")]
        for name in sorted(order, key=lambda name: -len(members[name])):
            chosen = min(range(folds), key=lambda number: (sizes[number], totals[number], number))
            fold_of[name] = chosen
            sizes[chosen] += len(members[name])
            totals[chosen] += len(members[name])
    moved = {name for name, number in fold_of.items() if number == fold}
    note = f"test: fold {fold} of {folds} (numbered from 0), held out with seed {seed}"
    moved_tiles = _move(tiles, train_rows, name_of, moved, "test", note)
    codes = set(moved_tiles.truth[moved_tiles.splits == "test"].tolist())
    absent = [name for code, name in enumerate(tiles.classes) if code not in codes]
    if not absent:
        return moved_tiles
    return replace(moved_tiles, notes=(*moved_tiles.notes, f"no tile of {shortlist(absent)} in this fold"))


def _hold_out(
    tiles: TileSet, split: Literal["validation", "test"], fraction: float, seed: int, fix: str | None = None
) -> TileSet:
    """Move about `fraction` of the training tiles to another split: whole groups, stratified by class where possible.

    A tile without a group forms its own group, unless its id contains a TCGA barcode; the slides of one TCGA patient
    form one group. If there are labelled tiles, only groups with labelled tiles move, because validation needs labels.
    At least one group of each class stays in the training split. The result depends on the names of the groups and the
    seed, not on the order of the rows.

    Raises:
        DataError: No group could be moved.
    """
    train_rows = np.flatnonzero(tiles.splits == "train").tolist()
    labelled = [index for index in train_rows if tiles.truth[index] >= 0]
    countable = labelled or train_rows
    name_of = _group_names(tiles, train_rows)
    members = _members(name_of, countable)
    strata = _strata(tiles, members)
    moved: set[str] = set()
    for _, stratum in sorted(strata.items()):
        target = fraction * sum(len(members[name]) for name in stratum)
        moved_count, left = 0, len(stratum)
        for position in shuffled(stratum, seed, split):
            size = len(members[stratum[position]])
            if left > 1 and abs(moved_count + size - target) < abs(moved_count - target):
                moved.add(stratum[position])
                moved_count, left = moved_count + size, left - 1
    if not moved:
        key = "validation_fraction" if split == "validation" else "test_fraction"
        single = max(map(len, strata.values()), default=0) < 2
        raise DataError(
            f"no {split} tiles can be held out: the training split has {counted(len(members), 'group')} for "
            f"{counted(len(countable), 'tile')}" + (", at most one for each class" if single else ""),
            where=tiles.where,
            fix=fix
            or f"name a {split} split in tiles.splits, or "
            + ("add tiles of other groups (patients)" if single else f"raise tiles.{key}"),
        )
    share = sum(len(members[name]) for name in moved) / len(countable)
    actual = f" (actually {share:.0%}, because whole groups move)" if abs(share - fraction) > _NOTED else ""
    note = f"{split}: {fraction:g} of the training tiles{actual}, held out with seed {seed}"
    return _move(tiles, train_rows, name_of, moved, split, note)


def _group_names(tiles: TileSet, rows: Sequence[int]) -> dict[int, str]:
    """Return the name of each tile's group; a tile without a group forms its own group."""
    groups, ids = patients(tiles.groups, tiles.ids), tiles.ids.tolist()
    return {row: f"group:{groups[row]}" if groups[row] else f"tile:{ids[row]}" for row in rows}


def _members(name_of: Mapping[int, str], rows: Iterable[int]) -> dict[str, list[int]]:
    members: dict[str, list[int]] = {}
    for row in rows:
        members.setdefault(name_of[row], []).append(row)
    return members


def _strata(tiles: TileSet, members: Mapping[str, Sequence[int]]) -> dict[int, list[str]]:
    """Return groups by the most frequent class of their labelled tiles (the first in a tie); -1 without labels."""
    truth = tiles.truth.tolist()
    strata: dict[int, list[str]] = {}
    for name, rows in members.items():
        counts = sorted(Counter(truth[row] for row in rows if truth[row] >= 0).items())
        stratum = max(counts, key=lambda item: item[1])[0] if counts else -1
        strata.setdefault(stratum, []).append(name)
    return strata


def _move(
    tiles: TileSet,
    train_rows: Sequence[int],
    name_of: Mapping[int, str],
    moved: set[str],
    split: Literal["validation", "test"],
    note: str,
) -> TileSet:
    """Move whole groups of training tiles to a split, and add a note that warns if groups are unknown."""
    splits = tiles.splits.astype("<U10")
    splits[[row for row in train_rows if name_of[row] in moved]] = split
    if any(name_of[row].startswith("tile:") for row in train_rows):
        note += f"; {_UNKNOWN_GROUPS.format(split=split)}"
    return replace(tiles, splits=splits, notes=(*tiles.notes, note))
