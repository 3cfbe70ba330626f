"""Splits: map published parts, split off validation and test parts, and check that no group crosses splits."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import Int64, Shaped

from clipit.errors import ConfigError, DataError, shortlist
from clipit.tiles.tileset import TileSet


def shuffled(names: Shaped[np.ndarray, " n"] | Sequence[str], seed: int, purpose: str) -> Int64[np.ndarray, " n"]:
    """Return the indices of the names in a random order that depends only on (seed, purpose, name).

    The relative order of the other names is unchanged when names are reordered, added or removed.
    """
    prefix = f"{purpose}:{seed}:".encode()
    values = [str(name) for name in names]
    digests = [hashlib.blake2b(prefix + value.encode(), digest_size=8).digest() for value in values]
    order = sorted(range(len(values)), key=lambda index: (digests[index], values[index]))
    return np.asarray(order, dtype=np.int64)


_TCGA = re.compile(r"(?<![A-Z0-9])TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Z0-9])", re.IGNORECASE)


def patient(group: str) -> str:
    """Return the patient of a group: the first 12 characters of a TCGA barcode, or any other name, stripped.

    `TCGA-A6-2671-01Z-00-DX1`, `TCGA-A6-2671-11A` and `slides/TCGA-A6-2671-01Z.svs` are slides and a sample of one
    patient, `TCGA-A6-2671`.
    """
    name = group.strip()
    barcode = _TCGA.match(re.split(r"[/\\]", name)[-1])
    return barcode[0].upper() if barcode else name


def patient_in(name: str) -> str:
    """Find the TCGA patient in the id of a tile or report (the last one in a path); "" if there is none."""
    barcodes = _TCGA.findall(name)
    return barcodes[-1].upper() if barcodes else ""


def patients(groups: Shaped[np.ndarray, " n"], ids: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
    """Return the patient (or slide) of each tile: `patient` of its group, else `patient_in` of its id, else ""."""
    names, rows = np.unique(groups, return_inverse=True)
    result = np.asarray([patient(name) for name in names.tolist()], dtype=object)[rows]
    nameless = np.flatnonzero(result == "")
    result[nameless] = [patient_in(name) for name in ids[nameless].tolist()]
    return result


SplitName = Literal["train", "validation", "test"]


def part_map(configured: Mapping[SplitName, str], known: Mapping[str, str]) -> dict[str, str]:
    """Map the source's parts to our splits.

    Args:
        configured: The source's part by our split (`tiles.splits`).
        known: Our split by the source's part, for the splits that are not configured.

    Raises:
        ConfigError: Two splits have the same part.
    """
    if len(set(configured.values())) < len(configured):
        raise ConfigError(
            "two splits are mapped to the same part",
            where=f"tiles.splits = {dict(configured)}",
            fix="map each split to a different part; omit validation to split it off train",
        )
    unchanged = {name: ours for name, ours in known.items() if ours not in configured}
    return unchanged | {name: ours for ours, name in configured.items()}


def resolve_parts(
    parts: Sequence[str],
    configured: Mapping[SplitName, str],
    known: Mapping[str, str],
    where: str,
    others: Literal["error", "ignore"] = "error",
) -> list[str]:
    """Return our split for each row; all rows are train if the source has no parts.

    With `others` "ignore", rows with an unknown part, or without a part while others have one, get "".

    Raises:
        DataError: A part is unknown, only some rows have a part, or a configured part does not occur.
    """
    mapping = part_map(configured, known)
    present = set(parts)
    absent = sorted(set(configured.values()) - present)
    unknown = sorted(name for name in present - {""} if name not in mapping and name.lower() not in mapping)
    problem = ""
    if absent:
        problem = f"tiles.splits names {shortlist(absent)}, which does not occur"
    elif others == "error" and unknown:
        problem = f"unknown split values: {shortlist(unknown)}"
    elif others == "error" and "" in present and len(present) > 1:
        problem = f"{list(parts).count('')} rows have no split, the others have"
    if problem:
        raise DataError(
            f"{problem}; the source has: {shortlist(sorted(present - {''}) or ['no splits'], 10)}",
            where=where,
            fix="map them in tiles.splits (ours: theirs), remove those rows from the source, "
            "or set tiles.other_parts: ignore",
        )
    ours = {name: mapping.get(name) or mapping.get(name.lower()) or "" for name in present}
    if present == {""}:
        ours = {"": "train"}
    return [ours[name] for name in parts]


def check_groups(tiles: TileSet) -> None:
    """Check that no patient or slide is in more than one split.

    Raises:
        DataError: A group crosses splits; the message lists such groups with their splits.
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
            fix="keep each patient or slide in one split: correct the split or the group of these tiles",
        )


def cut_validation(tiles: TileSet, fraction: float, seed: int, *, blind: bool = False) -> TileSet:
    """Move about `fraction` of train to validation (see `_cut`); with `blind`, without using labels.

    Raises:
        DataError: No group could be moved.
    """
    if not blind:
        return _cut(tiles, "validation", fraction, seed)
    cut = _cut(replace(tiles, truth=np.full_like(tiles.truth, -1)), "validation", fraction, seed)
    return replace(cut, truth=tiles.truth)


def cut_test(tiles: TileSet, fraction: float, seed: int) -> TileSet:
    """Move about `fraction` of train to test, for a data set published without a test part (see `_cut`).

    Raises:
        DataError: No group could be moved.
    """
    return _cut(tiles, "test", fraction, seed)


def _cut(tiles: TileSet, part: Literal["validation", "test"], fraction: float, seed: int) -> TileSet:
    """Move about `fraction` of train to another part, by complete groups and stratified by class where possible.

    A tile without a group is its own group, unless its id contains a TCGA barcode; the slides of one TCGA patient form
    one group. If there are labelled tiles, only their groups move, because validation needs labels. The result depends
    on the names of the groups and the seed, not on the order of the rows.

    Raises:
        DataError: No group could be moved.
    """
    inside = np.flatnonzero(tiles.splits == "train")
    known = tiles.truth[inside] >= 0
    counted = inside[known] if known.any() else inside
    groups, ids = patients(tiles.groups, tiles.ids), tiles.ids.tolist()
    name_of = {index: f"group:{groups[index]}" if groups[index] else f"tile:{ids[index]}" for index in inside.tolist()}
    members: dict[str, list[int]] = {}
    for index in counted.tolist():
        members.setdefault(name_of[index], []).append(index)
    truth = tiles.truth.tolist()
    strata: dict[int, list[str]] = {}
    for name, indices in members.items():
        # The stratum of a group is its most frequent class (the first if tied).
        counts = sorted(Counter(truth[index] for index in indices).items())
        strata.setdefault(max(counts, key=lambda item: item[1])[0], []).append(name)

    moved: set[str] = set()
    for _, stratum in sorted(strata.items()):
        target = fraction * sum(len(members[name]) for name in stratum)
        taken = 0
        for position in shuffled(stratum, seed, part):
            size = len(members[stratum[position]])
            if abs(taken + size - target) < abs(taken - target):
                moved.add(stratum[position])
                taken += size
    if not moved:
        raise DataError(
            f"no {part} part can be cut: train has {len(members)} groups for {len(counted)} tiles",
            where=tiles.where,
            fix=f"name a {part} part in tiles.splits"
            + (", or raise tiles.validation_fraction" if part == "validation" else ""),
        )
    splits = tiles.splits.astype("<U10")
    splits[[index for index in inside.tolist() if name_of[index] in moved]] = part
    note = f"{part}: {fraction:g} of train, cut with seed {seed}"
    if (groups[inside] == "").any():
        note += f"; groups unknown: tiles of one patient may be on both sides, so {part} scores may be too high"
    return replace(tiles, splits=splits, notes=(*tiles.notes, note))
