"""Splits: map the parts of a source to splits, and check that no group is in two splits."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int64, Shaped

from clipit.errors import ConfigError, DataError, shortlist
from clipit.patients import patients
from clipit.tiles.tileset import TileSet


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
"""Split -> parts of the source (`tiles.splits`)."""


def configured_parts(configured: Configured) -> dict[str, SplitName]:
    """Return the split of each configured part of the source.

    Raises:
        ConfigError: A part is named twice.
    """
    pairs = [
        (name, split) for split, names in configured.items() for name in ([names] if isinstance(names, str) else names)
    ]
    if len(dict(pairs)) < len(pairs):
        raise ConfigError(
            "two splits are mapped to the same part, or a part is named twice",
            where=f"tiles.splits = {dict(configured)}",
            fix="name each part once; omit validation to hold it out from train",
        )
    return dict(pairs)


def part_map(configured: Configured, known: Mapping[str, str]) -> dict[str, str]:
    """Map the parts of a source to splits.

    Args:
        configured: Split -> parts of the source (`tiles.splits`).
        known: Part of the source -> split, for splits that are not configured.

    Raises:
        ConfigError: A part is named twice.
    """
    defaults = {name: split for name, split in known.items() if split not in configured}
    return defaults | configured_parts(configured)


def resolve_parts(
    parts: Sequence[str],
    configured: Configured,
    known: Mapping[str, str],
    where: str,
    others: Literal["error", "ignore"] = "error",
) -> list[str]:
    """Return the split of each row; all rows are train if the source has no parts.

    With `others` "ignore", rows with an unknown part, or without a part although others have one, get "". A configured
    part "" stands for rows without a part.

    Raises:
        DataError: A part is unknown, only some rows have a part, or a configured part does not occur.
    """
    mapping = part_map(configured, known)
    present = set(parts)
    absent = sorted(set(configured_parts(configured)) - present)
    unknown = sorted(name for name in present - {""} if name not in mapping and name.lower() not in mapping)
    problem = ""
    if absent:
        problem = f"tiles.splits names {shortlist([name or repr(name) for name in absent])}, which does not occur"
    elif others == "error" and unknown:
        problem = f"unknown split values: {shortlist(unknown)}"
    elif others == "error" and "" in present and len(present) > 1 and "" not in mapping:
        problem = f"{list(parts).count('')} of {len(parts)} rows have no split"
    if problem:
        raise DataError(
            f"{problem}; the source has: {shortlist(sorted(present - {''}) or ['no splits'], 10)}",
            where=where,
            fix="map them (split: one or several names in the source), such as "
            """--tiles.splits='{"train": ["labelled", "unlabelled"], "test": "holdout"}', """
            "remove those rows from the source, or set tiles.other_parts: ignore",
        )
    split_of = {name: mapping.get(name) or mapping.get(name.lower()) or "" for name in present}
    if present == {""} and "" not in mapping:
        split_of = {"": "train"}
    return [split_of[name] for name in parts]


def check_groups(tiles: TileSet) -> None:
    """Check that no patient or slide is in more than one split.

    Raises:
        DataError: A group is in several splits; the message lists such groups with their splits.
    """
    seen: dict[str, set[str]] = {}
    for group, split in zip(patients(tiles.groups, tiles.ids).tolist(), tiles.splits.tolist(), strict=True):
        if group:
            seen.setdefault(group, set()).add(split)
    crossing = [f"{group} ({', '.join(sorted(splits))})" for group, splits in sorted(seen.items()) if len(splits) > 1]
    if crossing:
        raise DataError(
            f"{len(crossing)} groups are in more than one split: {shortlist(crossing)}",
            where=tiles.where,
            fix="keep each patient or slide in one split; correct the split or the group of these tiles",
        )
