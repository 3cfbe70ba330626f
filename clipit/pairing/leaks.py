"""Leaks: tiles, patients and reports that stand on both sides of a split.

Of two tiles in two splits, the one of the earlier split (train, validation, test) is the leak: leaving it out mends
the data and never touches a test tile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, Shaped, UInt8, UInt64

from clipit.config.run import LeaksConfig
from clipit.pairing.hamming import near_hashes
from clipit.reports.readers import Report
from clipit.tiles.perceptual import Fingerprints, oriented
from clipit.tiles.splits import patient, patient_in, patients
from clipit.tiles.tileset import SPLITS, TileSet

Kind = Literal["group", "exact", "near", "report"]
Prints = Fingerprints | UInt8[np.ndarray, "_ 16"]
"""What images look like, or their digests alone."""


@dataclass(frozen=True)
class Leak:
    """A tile or report that should not be trained on, and the tile of a later split that forbids it."""

    kind: Kind
    id: str
    """Of the tile, or (kind report) of the report."""
    split: str
    """Of the tile; "" for a report."""
    other_id: str
    other_split: str
    group: str = ""
    """The patient or slide that both belong to (kinds group and report)."""
    distance: int | None = None
    """Different bits of the two hashes (kinds exact and near)."""
    similarity: float | None = None
    """Correlation of the two thumbnails (kind near)."""


def find_leaks(
    tiles: TileSet,
    config: LeaksConfig,
    prints: Prints | None = None,
    reports: Sequence[Report] = (),
) -> list[Leak]:
    """All leaks, by kind, then by ids.

    Args:
        tiles: Of all splits.
        config: Thresholds, and which of the kinds exact and near are wanted.
        prints: Of these tiles in their order, for the kind exact alone their digests; None: pixels are not compared.
        reports: Those that snippets would be made of.
    """
    found = group_leaks(tiles)
    if prints is not None and config.pixels != "off":
        found += exact_leaks(tiles, prints.digests if isinstance(prints, Fingerprints) else prints)
        if config.pixels == "near" and isinstance(prints, Fingerprints):
            found += near_leaks(tiles, prints, config)
    return found + report_leaks(reports, tiles)


def group_leaks(tiles: TileSet) -> list[Leak]:
    """Tiles whose patient or slide also has tiles in a later split; one row per tile, with the latest split's first."""
    groups = patients(tiles.groups, tiles.ids)
    last: dict[str, tuple[int, str]] = {}  # patient -> its latest split and the lowest id in it
    ranks = _split_ranks(tiles)
    for row in np.flatnonzero(groups != "").tolist():
        name, rank = str(groups[row]), (-int(ranks[row]), str(tiles.ids[row]))
        last[name] = min(last.get(name, rank), rank)
    found = [
        Leak("group", str(tiles.ids[row]), str(tiles.splits[row]), last[name][1], SPLITS[-last[name][0]], name)
        for row, name in enumerate(groups.tolist())
        if name and -last[name][0] > ranks[row]
    ]
    return sorted(found, key=lambda leak: leak.id)


def report_leaks(reports: Sequence[Report], tiles: TileSet) -> list[Leak]:
    """Reports of the very patients that have tiles in validation or test.

    A report's or tile's patient is its group; without one, the TCGA barcode in its id, if there is one.
    """
    later = tiles.select(tiles.splits != "train")
    owners: dict[str, tuple[int, str]] = {}
    for name, rank, tile in zip(
        patients(later.groups, later.ids).tolist(), _split_ranks(later), later.ids.tolist(), strict=True
    ):
        if name:
            owners[name] = min(owners.get(name, (-int(rank), tile)), (-int(rank), tile))
    found = []
    for report in reports:
        name = patient_of(report)
        if name in owners:
            rank, tile = owners[name]
            found.append(Leak("report", report.report_id, "", tile, SPLITS[-rank], name))
    return sorted(found, key=lambda leak: leak.id)


def patient_of(report: Report) -> str:
    """The patient of a report; "" where nothing says who it is."""
    return patient(report.group) if report.group else patient_in(report.report_id)


def exact_leaks(tiles: TileSet, digests: UInt8[np.ndarray, "n 16"]) -> list[Leak]:
    """Tiles whose decoded pixels occur in a later split, too; tiles of one colour are passed over."""
    whole = np.ascontiguousarray(digests).view("V16").reshape(-1)
    _, content = np.unique(whole, return_inverse=True)
    ranks = _split_ranks(tiles)
    earliest, latest = np.full(len(tiles), len(SPLITS)), np.full(len(tiles), -1)
    np.minimum.at(earliest, content, ranks)
    np.maximum.at(latest, content, ranks)
    rows = np.flatnonzero(digests.any(axis=1) & (earliest < latest)[content])
    order = rows[np.lexsort((tiles.ids[rows], ranks[rows], content[rows]))]
    found = []
    for members in np.split(order, np.flatnonzero(np.diff(content[order])) + 1):
        if not members.size:
            continue
        # Of each split in question the lowest id stands for the others, so that every tile is named at least once.
        first, last = int(members[0]), int(members[ranks[members] == ranks[members[-1]]][0])
        for row in members.tolist():
            if ranks[row] < ranks[last]:
                found.append(_pixel_leak("exact", tiles, row, last, 0))
            if ranks[row] > ranks[first]:
                found.append(_pixel_leak("exact", tiles, first, row, 0))
    return _sorted(found)


def near_leaks(tiles: TileSet, prints: Fingerprints, config: LeaksConfig) -> list[Leak]:
    """Tiles that look like one of a later split in one of eight orientations, but whose pixels are not equal.

    Candidates are hashes within `config.distance` bits; they count when the thumbnails' correlation reaches
    `config.similarity`. Nearly empty tiles (`config.spread`) are not compared. Of each tile on either side the nearest
    counterpart is given, not all of them. Not found are tiles turned by other angles, and tiles that share only a part
    of their area.
    """
    ranks, rich = _split_ranks(tiles), prints.spread >= config.spread
    by_id = np.argsort(np.argsort(tiles.ids, kind="stable"), kind="stable")
    found: list[Leak] = []
    for rank in range(len(SPLITS) - 1):
        base, queries = np.flatnonzero(rich & (ranks == rank)), np.flatnonzero(rich & (ranks > rank))
        found += [
            _pixel_leak("near", tiles, int(hit["a"]), int(hit["b"]), int(hit["distance"]), float(hit["similarity"]))
            for hit in _near_hits(prints, base, queries, by_id, config)
        ]
    return _sorted(found)


def copies(
    tests: TileSet, of_tests: Prints, learnt: TileSet, of_learnt: Prints, config: LeaksConfig
) -> dict[str, Leak]:
    """Tiles of another set that are images of learnt tiles: test id -> the learnt tile that it copies.

    Equal pixels go before images that only look alike (with fingerprints, by the rules of `near_leaks`); of several
    equal ones the lowest id is named.

    Args:
        tests: Of the other set.
        of_tests: Of these tiles in their order.
        learnt: Tiles of training and validation.
        of_learnt: Of these tiles in their order, of the same kind.
        config: Thresholds.
    """
    found: dict[str, Leak] = {}
    if isinstance(of_tests, Fingerprints) and isinstance(of_learnt, Fingerprints):
        names = ("digests", "hashes", "thumbnails")
        both = Fingerprints(*(np.concatenate([getattr(of_tests, name), getattr(of_learnt, name)]) for name in names))
        rich, own, n = both.spread >= config.spread, np.arange(len(both.digests)) < len(tests), len(tests)
        order = np.argsort(np.argsort(np.concatenate([tests.ids, learnt.ids]), kind="stable"), kind="stable")
        for hit in _near_hits(both, np.flatnonzero(rich & ~own), np.flatnonzero(rich & own), order, config):
            a, b = int(hit["a"]) - n, int(hit["b"])
            leak = _copy("near", learnt, a, tests, b, int(hit["distance"]), float(hit["similarity"]))
            before = found.get(leak.other_id)
            if before is None or (leak.distance, leak.id) < (before.distance, before.id):
                found[leak.other_id] = leak
    digests = {}
    for row in np.argsort(learnt.ids, kind="stable")[::-1].tolist():
        digests[_digests(of_learnt)[row].tobytes()] = row
    for b, digest in enumerate(_digests(of_tests)):
        if digest.any() and digest.tobytes() in digests:
            found[str(tests.ids[b])] = _copy("exact", learnt, digests[digest.tobytes()], tests, b, 0, None)
    return found


def _digests(prints: Prints) -> UInt8[np.ndarray, "n 16"]:
    return prints.digests if isinstance(prints, Fingerprints) else prints


def _copy(kind: Kind, learnt: TileSet, a: int, tests: TileSet, b: int, distance: int, similarity: float | None) -> Leak:
    ends = (str(learnt.ids[a]), str(learnt.splits[a]), str(tests.ids[b]), str(tests.splits[b]))
    return Leak(kind, *ends, distance=distance, similarity=similarity)


_NEAR = np.dtype([("a", np.int64), ("b", np.int64), ("distance", np.uint8), ("similarity", np.float32)])


def _near_hits(
    prints: Fingerprints,
    base: Int64[np.ndarray, " a"],
    queries: Int64[np.ndarray, " b"],
    by_id: Int64[np.ndarray, " n"],
    config: LeaksConfig,
) -> Shaped[np.ndarray, " m"]:
    """Rows a (of `base`) and b (of `queries`) that look alike: the nearest of each on either side."""
    best = np.empty(0, dtype=_NEAR)
    if not base.size or not queries.size:
        return best
    unit = _unit(prints.thumbnails)
    wanted: UInt64[np.ndarray, " m"] = prints.hashes[queries].reshape(-1)
    for rows, hits, bits in near_hashes(prints.hashes[base, 0], wanted, config.distance):
        a, b, orientation = base[rows], queries[hits // 8], hits % 8
        other = (prints.digests[a] != prints.digests[b]).any(axis=1)
        a, b, orientation, bits = a[other], b[other], orientation[other], bits[other]
        alike = _correlations(unit, a, b, orientation)
        near = alike >= config.similarity
        new = np.empty(int(near.sum()), dtype=_NEAR)
        new["a"], new["b"], new["distance"], new["similarity"] = a[near], b[near], bits[near], alike[near]
        best = _nearest(np.concatenate([best, new]), by_id)
    return best


def _nearest(hits: Shaped[np.ndarray, " n"], by_id: Int64[np.ndarray, " tiles"]) -> Shaped[np.ndarray, " m"]:
    """Of each tile on either side, the hit with the fewest bits, then the highest similarity, then the lowest id."""
    kept: Bool[np.ndarray, " n"] = np.zeros(len(hits), dtype=np.bool_)
    for side, other in (("a", "b"), ("b", "a")):
        order = np.lexsort((by_id[hits[other]], -hits["similarity"], hits["distance"], hits[side]))
        first = np.concatenate([[True], np.diff(hits[side][order]) > 0])[: len(order)]
        kept[order[first]] = True
    return np.asarray(hits[kept])


def _unit(thumbnails: UInt8[np.ndarray, "n 16 16"]) -> Float32[np.ndarray, "n 16 16"]:
    """Thumbnails with mean 0 and length 1 (zero when they are of one grey)."""
    grey = thumbnails.astype(np.float32)
    grey -= grey.mean(axis=(1, 2), keepdims=True)
    grey /= np.maximum(np.sqrt((grey**2).sum(axis=(1, 2), keepdims=True)), 1e-6)
    return grey


def _correlations(
    unit: Float32[np.ndarray, "n 16 16"],
    a: Int64[np.ndarray, " hits"],
    b: Int64[np.ndarray, " hits"],
    orientation: Int64[np.ndarray, " hits"],
) -> Float64[np.ndarray, " hits"]:
    """Correlation of thumbnails a with thumbnails b in the orientation that was found."""
    found = np.empty(len(a))
    for turn in range(8):
        for part in np.array_split(np.flatnonzero(orientation == turn), 1 + len(a) // 65536):
            found[part] = (unit[a[part]] * oriented(unit[b[part]], turn)).sum(axis=(1, 2))
    return found


def _split_ranks(tiles: TileSet) -> Int64[np.ndarray, " n"]:
    """0 for train, 1 for validation, 2 for test."""
    return np.asarray([SPLITS.index(split) for split in tiles.splits.tolist()], dtype=np.int64)


def _pixel_leak(
    kind: Kind, tiles: TileSet, row: int, other: int, distance: int, similarity: float | None = None
) -> Leak:
    """A leak between two rows of the tiles, the earlier split's first."""
    names, splits = tiles.ids, tiles.splits
    alike = None if similarity is None else round(similarity, 4)
    return Leak(kind, str(names[row]), str(splits[row]), str(names[other]), str(splits[other]), "", distance, alike)


def _sorted(leaks: list[Leak]) -> list[Leak]:
    """Each once, by ids."""
    return sorted(set(leaks), key=lambda leak: (leak.id, leak.other_id))
