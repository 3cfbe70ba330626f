"""Map the splits of a source to train, validation and test, and check that no group is in two splits."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Int64, Shaped

from clipit.config.run import TilesConfig
from clipit.errors import ConfigError, DataError, counted, counted_of, shortlist
from clipit.patients import match_patients, patients
from clipit.tiles.source import ALIASES
from clipit.tiles.tileset import SPLITS, TileSet

Rows = TypeVar("Rows")


def shuffled(names: Shaped[np.ndarray, " n"] | Sequence[str], seed: int, purpose: str) -> Int64[np.ndarray, " n"]:
    """Return the indices of the names in a random order that depends only on (seed, purpose, name).

    Reordering, adding or removing names does not change the relative order of the others.
    """
    prefix = f"{purpose}:{seed}:".encode()
    values = [str(name) for name in names]
    digests = [hashlib.blake2b(prefix + value.encode(), digest_size=8).digest() for value in values]
    order = sorted(range(len(values)), key=lambda index: (digests[index], values[index]))
    return np.asarray(order, dtype=np.int64)


SplitName = Literal["train", "validation", "test"]
Configured = Mapping[SplitName, str | tuple[str, ...]]
"""Names that the source uses for each split (`tiles.splits`)."""


def configured_splits(configured: Configured) -> dict[str, SplitName]:
    """Return the split for each configured name in the source.

    Raises:
        ConfigError: A name occurs twice.
    """
    pairs = [
        (name, split) for split, names in configured.items() for name in ([names] if isinstance(names, str) else names)
    ]
    if len(dict(pairs)) < len(pairs):
        raise ConfigError(
            "two splits have the same name in the source, or a name occurs twice",
            where=f"tiles.splits = {dict(configured)}",
            fix="write each name once; omit validation to have validation tiles held out of the training split",
        )
    return dict(pairs)


def split_map(configured: Configured, known: Mapping[str, str]) -> dict[str, str]:
    """Map the split names in a source to splits.

    Args:
        configured: Names that the source uses for each split (`tiles.splits`).
        known: Default mapping from the source's split names to splits, for names that are not configured.

    Raises:
        ConfigError: A name occurs twice.
    """
    defaults = {name: split for name, split in known.items() if split not in configured}
    return defaults | configured_splits(configured)


def resolve_splits(
    source_splits: Sequence[str],
    configured: Configured,
    known: Mapping[str, str],
    where: str,
    others: Literal["error", "ignore"] = "error",
) -> list[str]:
    """Return the split of each row; all rows belong to train if the source has no splits.

    If `others` is "ignore", rows whose split is unknown get "", as do rows without a split if other rows have one. The
    name "" in `configured` stands for rows without a split.

    Raises:
        DataError: A split is unknown, only some rows have a split, or a configured name does not occur.
    """
    mapping = split_map(configured, known)
    present = set(source_splits)
    absent = sorted(set(configured_splits(configured)) - present)
    unknown = sorted(name for name in present - {""} if name not in mapping and name.lower() not in mapping)
    problem = ""
    if absent:
        problem = f"tiles.splits has names that do not occur: {shortlist([name or repr(name) for name in absent])}"
    elif others == "error" and unknown:
        problem = f"unknown split values: {shortlist(unknown)}"
    elif others == "error" and "" in present and len(present) > 1 and "" not in mapping:
        problem = f"{counted_of(list(source_splits).count(''), len(source_splits), 'row has', 'rows have')} no split"
    if problem:
        raise DataError(
            f"{problem}; the source has: {shortlist(sorted(present - {''}) or ['no splits'], 10)}",
            where=where,
            fix="map them (split: one or more names in the source), for example "
            """--tiles.splits='{"train": ["labelled", "unlabelled"], "test": "holdout"}', """
            "remove those rows from the source, or set tiles.other_parts: ignore",
        )
    split_of = {name: mapping.get(name) or mapping.get(name.lower()) or "" for name in present}
    if present == {""} and "" not in mapping:
        split_of = {"": "train"}
    return [split_of[name] for name in source_splits]


def select_splits(splits: Mapping[str, Rows], config: TilesConfig) -> dict[str, Rows]:
    """Return the splits that tiles.splits names and those with standard names, or all splits if it is not set.

    Raises:
        DataError: A split named in tiles.splits is missing.
    """
    absent = sorted(set(configured_splits(config.splits)) - set(splits))
    if absent:
        raise DataError(
            f"no split {shortlist(absent)}; the data set has: {', '.join(splits)}",
            where=config.path,
            fix="correct tiles.splits",
        )
    if not config.splits:
        return dict(splits)
    mapping = split_map(config.splits, ALIASES)
    return {name: rows for name, rows in splits.items() if name in mapping or name.lower() in mapping}


def unused_splits(rows_of: Mapping[str, int | None], used: Collection[str]) -> tuple[str, ...]:
    """Return a note on the splits that are not used.

    Args:
        rows_of: Number of rows of every split; None if unknown.
        used: Names of the splits returned by `select_splits`.
    """
    unused = [
        name if rows is None else f"{name} ({counted(rows, 'tile')})"
        for name, rows in rows_of.items()
        if name not in used
    ]
    return (f"splits that tiles.splits does not name are dropped: {shortlist(unused)}",) if unused else ()


def patients_across_splits(
    groups: Shaped[np.ndarray, " n"], ids: Shaped[np.ndarray, " n"], splits: Shaped[np.ndarray, " n"]
) -> Shaped[np.ndarray, " n"]:
    """Return the patient of each tile; a slide is replaced with its patient if this patient occurs in another split."""
    names = patients(groups, ids)
    for split in np.unique(splits.astype(str))[:-1]:  # each against all others
        inside = splits == split
        names[inside], names[~inside] = match_patients(names[inside].tolist(), names[~inside].tolist())
    return names


def crossing_groups(
    groups: Shaped[np.ndarray, " n"], ids: Shaped[np.ndarray, " n"], splits: Shaped[np.ndarray, " n"]
) -> list[str]:
    """List the patients or slides in more than one split, each with its splits."""
    splits_of: dict[str, set[str]] = {}
    for group, split in zip(patients_across_splits(groups, ids, splits).tolist(), splits.tolist(), strict=True):
        if group:
            splits_of.setdefault(group, set()).add(split)
    return [f"{group} ({', '.join(sorted(each))})" for group, each in sorted(splits_of.items()) if len(each) > 1]


def drop_crossing(tiles: TileSet) -> tuple[TileSet, int]:
    """Drop tiles of patients or slides in several splits, except those in the last of these splits, and count them."""
    owners = patients_across_splits(tiles.groups, tiles.ids, tiles.splits)
    ranks = np.array([SPLITS.index(split) for split in tiles.splits.tolist()], dtype=np.int64)
    last: dict[str, int] = {}
    for owner, rank in zip(owners.tolist(), ranks.tolist(), strict=True):
        last[owner] = max(rank, last.get(owner, rank))
    is_last = [not owner or last[owner] == rank for owner, rank in zip(owners.tolist(), ranks.tolist(), strict=True)]
    kept = np.array(is_last, dtype=np.bool_)
    return tiles.select(kept), int((~kept).sum())


def check_groups(tiles: TileSet) -> None:
    """Check that no patient or slide is in more than one split.

    Raises:
        DataError: A group is in several splits; the message lists such groups with their splits.
    """
    if crossing := crossing_groups(tiles.groups, tiles.ids, tiles.splits):
        raise DataError(
            f"{counted(len(crossing), 'group is', 'groups are')} in more than one split: {shortlist(crossing)}",
            where=tiles.where,
            fix="keep each patient or slide in one split; correct the split or the group of these tiles",
        )
