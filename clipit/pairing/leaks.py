"""Leaks: tiles, patients and reports that occur in more than one split.

Of two matching tiles in different splits, the one in the earlier split (train, validation, test) is called the leak:
dropping it does not change a test set.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, Shaped, UInt8, UInt64

from clipit.config.run import LeaksConfig
from clipit.patients import match_patients, patient, patient_in, patients
from clipit.reports.readers import Report
from clipit.tiles.perceptual import PerceptualHashes, oriented
from clipit.tiles.splits import patients_across_splits
from clipit.tiles.tileset import SPLITS, TileSet

_BANDS, _WIDTH = 4, 16  # number of bands of a 64-bit hash, and bits per band
_MAX_CANDIDATES = 2**22  # maximum number of candidate pairs in memory

Hits = tuple[Int64[np.ndarray, " hits"], Int64[np.ndarray, " hits"], UInt8[np.ndarray, " hits"]]
"""Pairs of similar hashes: rows of the searched hashes, rows of the queries, and numbers of differing bits."""

Kind = Literal["group", "exact", "near", "report"]
ImageHashes = PerceptualHashes | UInt8[np.ndarray, "_ 16"]
"""Hashes of images: perceptual hashes with digests, or only digests."""


@dataclass(frozen=True)
class Leak:
    """A tile or report that leaks, and the matching tile in a held-out split."""

    kind: Kind
    id: str
    """Id of the tile, or of the report if the kind is report."""
    split: str
    """Split of the tile; "" for a report."""
    other_id: str
    other_split: str
    group: str = ""
    """Patient or slide that both share (kinds group and report)."""
    distance: int | None = None
    """Number of differing bits of the two hashes (kinds exact and near)."""
    similarity: float | None = None
    """Correlation of the two thumbnails (kind near)."""


@dataclass(frozen=True)
class SeenTiles:
    """Tiles on which a run was trained or validated, without their images.

    Attributes:
        splits: Split of each tile: train or validation.
        groups: Patient or slide of each tile; "" where unknown.
    """

    ids: Shaped[np.ndarray, " n"]
    splits: Shaped[np.ndarray, " n"]
    groups: Shaped[np.ndarray, " n"]

    def __len__(self) -> int:
        """Return the number of tiles."""
        return int(self.ids.size)


def find_leaks(
    tiles: TileSet, config: LeaksConfig, image_hashes: ImageHashes | None = None, reports: Sequence[Report] = ()
) -> list[Leak]:
    """Find all leaks, sorted by kind, then by id.

    Args:
        config: Thresholds, and whether to search for exact copies and near-duplicates.
        image_hashes: Hashes of the tiles, in the same order (digests suffice for exact copies); None to skip the
            comparison of pixels.
        reports: Reports that supply the snippets.
    """
    leaks = group_leaks(tiles)
    if image_hashes is not None and config.pixels != "off":
        leaks += exact_leaks(tiles, digests_of(image_hashes))
        if config.pixels == "near" and isinstance(image_hashes, PerceptualHashes):
            leaks += near_leaks(tiles, image_hashes, config)
    return leaks + report_leaks(reports, tiles)


def group_leaks(tiles: TileSet) -> list[Leak]:
    """Find tiles whose patient or slide also has tiles in a held-out split.

    These splits are validation and test for training tiles, and test for validation tiles. Each leak names the tile of
    that patient or slide with the lowest id in its latest split.
    """
    groups = patients_across_splits(tiles.groups, tiles.ids, tiles.splits)
    last: dict[str, tuple[int, str]] = {}  # latest split of each patient, and the lowest id in it
    ranks = _split_ranks(tiles)
    for row in np.flatnonzero(groups != "").tolist():
        name, rank = str(groups[row]), (-int(ranks[row]), str(tiles.ids[row]))
        last[name] = min(last.get(name, rank), rank)
    leaks = [
        Leak("group", str(tiles.ids[row]), str(tiles.splits[row]), last[name][1], SPLITS[-last[name][0]], name)
        for row, name in enumerate(groups.tolist())
        if name and -last[name][0] > ranks[row]
    ]
    return sorted(leaks, key=lambda leak: leak.id)


def report_leaks(reports: Sequence[Report], tiles: TileSet) -> list[Leak]:
    """Find reports of patients who have tiles in validation or test.

    The patient of a report or tile is its group or, if it has none, the TCGA barcode in its id.
    """
    names, tile_names = match_report_patients(reports, tiles)
    owners: dict[str, tuple[int, str]] = {}
    for name, rank, tile in zip(tile_names, _split_ranks(tiles).tolist(), tiles.ids.tolist(), strict=True):
        if name and rank:
            owners[name] = min(owners.get(name, (-rank, tile)), (-rank, tile))
    leaks = []
    for name, report in zip(names, reports, strict=True):
        if name in owners:
            rank, tile = owners[name]
            leaks.append(Leak("report", report.report_id, "", tile, SPLITS[-rank], name))
    return sorted(leaks, key=lambda leak: leak.id)


def match_report_patients(reports: Sequence[Report], tiles: TileSet | SeenTiles) -> tuple[list[str], list[str]]:
    """Return the patient of each report and of each tile, so that identical names mean the same patient."""
    return match_patients([patient_of(report) for report in reports], patients(tiles.groups, tiles.ids).tolist())


def patient_of(report: Report) -> str:
    """Return the patient of a report; "" if unknown."""
    return patient(report.group) if report.group else patient_in(report.report_id)


def count_reports_of(reports: Sequence[Report], tiles: TileSet | SeenTiles) -> int:
    """Count the reports of patients who have tiles in a set, in any split."""
    names, owners = match_report_patients(reports, tiles)
    known = set(owners) - {""}
    return sum(name in known for name in names)


def exact_leaks(tiles: TileSet, digests: UInt8[np.ndarray, "n 16"]) -> list[Leak]:
    """Find tiles whose decoded pixels also occur in a held-out split; tiles of a single colour are ignored."""
    _, content = np.unique(np.ascontiguousarray(digests).view("V16").reshape(-1), return_inverse=True)
    ranks = _split_ranks(tiles)
    earliest, latest = np.full(len(tiles), len(SPLITS)), np.full(len(tiles), -1)
    np.minimum.at(earliest, content, ranks)
    np.maximum.at(latest, content, ranks)
    rows = np.flatnonzero(digests.any(axis=1) & (earliest < latest)[content])
    order = rows[np.lexsort((tiles.ids[rows], ranks[rows], content[rows]))]
    leaks = []
    for members in np.split(order, np.flatnonzero(np.diff(content[order])) + 1):
        if not members.size:
            continue
        # Every tile is reported at least once, against the lowest id of the other split.
        first, last = int(members[0]), int(members[ranks[members] == ranks[members[-1]]][0])
        for row in members.tolist():
            if ranks[row] < ranks[last]:
                leaks.append(_pixel_leak("exact", tiles, row, last, 0))
            if ranks[row] > ranks[first]:
                leaks.append(_pixel_leak("exact", tiles, first, row, 0))
    return _sorted(leaks)


def near_leaks(tiles: TileSet, image_hashes: PerceptualHashes, config: LeaksConfig) -> list[Leak]:
    """Find near-duplicates of tiles in a held-out split, in any of eight orientations; exact copies are excluded.

    Two tiles match if their hashes differ in at most `config.distance` bits and the correlation of their thumbnails is
    at least `config.similarity`. Nearly empty tiles (`config.spread`) are not compared. Only the nearest match of each
    tile on either side is returned. Tiles rotated by other angles, and partly overlapping tiles, are not found.
    """
    ranks, informative = _split_ranks(tiles), image_hashes.spread >= config.spread
    by_id = np.argsort(np.argsort(tiles.ids, kind="stable"), kind="stable")
    leaks: list[Leak] = []
    for rank in range(len(SPLITS) - 1):
        base, queries = np.flatnonzero(informative & (ranks == rank)), np.flatnonzero(informative & (ranks > rank))
        leaks += [
            _pixel_leak("near", tiles, int(hit["a"]), int(hit["b"]), int(hit["distance"]), float(hit["similarity"]))
            for hit in _near_hits(image_hashes, base, queries, by_id, config)
        ]
    return _sorted(leaks)


def find_copies(
    tests: TileSet, test_hashes: ImageHashes, seen: TileSet | SeenTiles, seen_hashes: ImageHashes, config: LeaksConfig
) -> dict[str, Leak]:
    """Find tiles of a new data set that are copies of training or validation tiles.

    Exact copies take precedence over near-duplicates, which are found only if both are `PerceptualHashes`
    (`near_leaks`). Of several identical tiles, the one with the lowest id is returned.

    Args:
        test_hashes: Hashes or digests of `tests`, in the same order.
        seen: Training and validation tiles.
        seen_hashes: Hashes or digests of `seen`, in the same order.

    Returns:
        Leak for each copied tile, by test id.
    """
    copies: dict[str, Leak] = {}
    if isinstance(test_hashes, PerceptualHashes) and isinstance(seen_hashes, PerceptualHashes):
        names = ("digests", "hashes", "thumbnails")
        both = PerceptualHashes(
            *(np.concatenate([getattr(test_hashes, name), getattr(seen_hashes, name)]) for name in names)
        )
        informative, is_test, n = both.spread >= config.spread, np.arange(len(both.digests)) < len(tests), len(tests)
        order = np.argsort(np.argsort(np.concatenate([tests.ids, seen.ids]), kind="stable"), kind="stable")
        for hit in _near_hits(
            both, np.flatnonzero(informative & ~is_test), np.flatnonzero(informative & is_test), order, config
        ):
            a, b = int(hit["a"]) - n, int(hit["b"])
            leak = _copy_leak("near", seen, a, tests, b, int(hit["distance"]), float(hit["similarity"]))
            best = copies.get(leak.other_id)
            if best is None or (leak.distance, leak.id) < (best.distance, best.id):
                copies[leak.other_id] = leak
    digests = {}
    for row in np.argsort(seen.ids, kind="stable")[::-1].tolist():
        digests[digests_of(seen_hashes)[row].tobytes()] = row
    for b, digest in enumerate(digests_of(test_hashes)):
        if digest.any() and digest.tobytes() in digests:
            copies[str(tests.ids[b])] = _copy_leak("exact", seen, digests[digest.tobytes()], tests, b, 0, None)
    return copies


def digests_of(image_hashes: ImageHashes) -> UInt8[np.ndarray, "n 16"]:
    """Return the digests of the images' pixels, one row per image."""
    return image_hashes.digests if isinstance(image_hashes, PerceptualHashes) else image_hashes


def find_shared_patients(tests: TileSet | SeenTiles, seen: TileSet | SeenTiles) -> dict[str, Leak]:
    """Find tiles of a new data set whose patient or slide was used for training or validation.

    Returns:
        Leaks by test id. Each leak names the patient's training or validation tile with the lowest id.
    """
    first: dict[str, int] = {}
    test_names, names = match_patients(
        patients(tests.groups, tests.ids).tolist(), patients(seen.groups, seen.ids).tolist()
    )
    for row in np.argsort(seen.ids, kind="stable").tolist():
        first.setdefault(names[row], row)
    return {
        tile: Leak("group", str(seen.ids[first[name]]), str(seen.splits[first[name]]), tile, split, name)
        for tile, split, name in zip(tests.ids.tolist(), tests.splits.tolist(), test_names, strict=True)
        if name and name in first
    }


def _copy_leak(
    kind: Kind, seen: TileSet | SeenTiles, a: int, tests: TileSet, b: int, distance: int, similarity: float | None
) -> Leak:
    ends = (str(seen.ids[a]), str(seen.splits[a]), str(tests.ids[b]), str(tests.splits[b]))
    return Leak(kind, *ends, distance=distance, similarity=similarity)


_NEAR = np.dtype([("a", np.int64), ("b", np.int64), ("distance", np.uint8), ("similarity", np.float32)])


def _near_hits(
    image_hashes: PerceptualHashes,
    base: Int64[np.ndarray, " a"],
    queries: Int64[np.ndarray, " b"],
    by_id: Int64[np.ndarray, " n"],
    config: LeaksConfig,
) -> Shaped[np.ndarray, " m"]:
    """Find similar tiles, a from `base` and b from `queries`; only the nearest match of each tile is kept."""
    best = np.empty(0, dtype=_NEAR)
    if not base.size or not queries.size:
        return best
    standardised = _standardise(image_hashes.thumbnails)
    query_hashes: UInt64[np.ndarray, " m"] = image_hashes.hashes[queries].reshape(-1)
    for rows, hits, bits in near_hashes(image_hashes.hashes[base, 0], query_hashes, config.distance):
        a, b, orientation = base[rows], queries[hits // 8], hits % 8
        different = (image_hashes.digests[a] != image_hashes.digests[b]).any(axis=1)
        a, b, orientation, bits = a[different], b[different], orientation[different], bits[different]
        similarity = _correlations(standardised, a, b, orientation)
        near = similarity >= config.similarity
        new = np.empty(int(near.sum()), dtype=_NEAR)
        new["a"], new["b"], new["distance"], new["similarity"] = a[near], b[near], bits[near], similarity[near]
        best = _nearest(np.concatenate([best, new]), by_id)
    return best


def _nearest(hits: Shaped[np.ndarray, " n"], by_id: Int64[np.ndarray, " tiles"]) -> Shaped[np.ndarray, " m"]:
    """Select, for each tile on either side, the hit with the lowest distance, highest similarity and lowest id."""
    kept: Bool[np.ndarray, " n"] = np.zeros(len(hits), dtype=np.bool_)
    for side, other in (("a", "b"), ("b", "a")):
        order = np.lexsort((by_id[hits[other]], -hits["similarity"], hits["distance"], hits[side]))
        first = np.concatenate([[True], np.diff(hits[side][order]) > 0])[: len(order)]
        kept[order[first]] = True
    return np.asarray(hits[kept])


def _standardise(thumbnails: UInt8[np.ndarray, "n 16 16"]) -> Float32[np.ndarray, "n 16 16"]:
    """Standardise thumbnails to mean 0 and norm 1; uniform thumbnails become zero."""
    grey = thumbnails.astype(np.float32)
    grey -= grey.mean(axis=(1, 2), keepdims=True)
    grey /= np.maximum(np.sqrt((grey**2).sum(axis=(1, 2), keepdims=True)), 1e-6)
    return grey


def _correlations(
    thumbnails: Float32[np.ndarray, "n 16 16"],
    a: Int64[np.ndarray, " hits"],
    b: Int64[np.ndarray, " hits"],
    orientation: Int64[np.ndarray, " hits"],
) -> Float64[np.ndarray, " hits"]:
    """Correlate standardised thumbnails `a` with thumbnails `b` in the given orientations."""
    correlations = np.empty(len(a))
    for turn in range(8):
        for part in np.array_split(np.flatnonzero(orientation == turn), 1 + len(a) // 65536):
            correlations[part] = (thumbnails[a[part]] * oriented(thumbnails[b[part]], turn)).sum(axis=(1, 2))
    return correlations


def _split_ranks(tiles: TileSet) -> Int64[np.ndarray, " n"]:
    """Rank each tile's split: 0 for train, 1 for validation, 2 for test."""
    return np.asarray([SPLITS.index(split) for split in tiles.splits.tolist()], dtype=np.int64)


def _pixel_leak(
    kind: Kind, tiles: TileSet, row: int, other: int, distance: int, similarity: float | None = None
) -> Leak:
    names, splits = tiles.ids, tiles.splits
    rounded = None if similarity is None else round(similarity, 4)
    return Leak(kind, str(names[row]), str(splits[row]), str(names[other]), str(splits[other]), "", distance, rounded)


def _sorted(leaks: list[Leak]) -> list[Leak]:
    return sorted(set(leaks), key=lambda leak: (leak.id, leak.other_id))


def near_hashes(base: UInt64[np.ndarray, " n"], queries: UInt64[np.ndarray, " m"], distance: int) -> Iterator[Hits]:
    """Find all pairs of 64-bit hashes within a Hamming distance, each once, by multi-index hashing.

    The 64 bits are split into four bands of 16. If two hashes differ in at most d bits, they differ in at most d // 4
    bits of some band (pigeonhole principle). Candidates are therefore looked up per band, as every value within d // 4
    bits of the query's band (Norouzi et al. 2014, arXiv 1307.2982), and their differing bits are counted. Memory does
    not depend on the number of pairs.

    Args:
        base: Hashes that are searched.
        queries: Hashes to look up in `base`.
        distance: Maximum number of differing bits; above 7 the search is eight times slower.

    Yields:
        Rows of `base`, rows of `queries` and distances of a batch of pairs.
    """
    radius = distance // _BANDS
    masks = [sum(1 << bit for bit in bits) for r in range(radius + 1) for bits in combinations(range(_WIDTH), r)]
    for band in range(_BANDS):
        keys = _band(base, band)
        order = np.argsort(keys, kind="stable")
        ordered = base[order]
        starts = np.searchsorted(keys[order], np.arange(2**_WIDTH + 1))
        query_keys = _band(queries, band)
        for mask in masks:
            codes = query_keys ^ mask
            for position, query in _candidates(starts[codes], starts[codes + 1]):
                bits = np.bitwise_count(ordered[position] ^ queries[query])
                hit = np.flatnonzero(bits <= distance)
                rows, query, bits = order[position[hit]], query[hit], bits[hit]
                new = _first_in(base[rows] ^ queries[query], band, radius)
                if new.any():
                    yield rows[new], query[new], bits[new]


def _band(hashes: UInt64[np.ndarray, " n"], band: int) -> Int64[np.ndarray, " n"]:
    return ((hashes >> np.uint64(band * _WIDTH)) & np.uint64(2**_WIDTH - 1)).astype(np.int64)


def _candidates(
    first: Int64[np.ndarray, " m"], end: Int64[np.ndarray, " m"]
) -> Iterator[tuple[Int64[np.ndarray, " c"], Int64[np.ndarray, " c"]]]:
    """Yield the positions in the ranges `first[q]:end[q]`, with the q of each position, in blocks."""
    nonempty = np.flatnonzero(end > first)
    counts = (end - first)[nonempty]
    totals = np.concatenate([[0], np.cumsum(counts)])
    start = 0
    while start < len(nonempty):
        stop = max(start + 1, int(np.searchsorted(totals, totals[start] + _MAX_CANDIDATES, side="right")) - 1)
        size = counts[start:stop]
        before = np.repeat(totals[start:stop] - totals[start], size)
        position = np.repeat(first[nonempty[start:stop]], size) + np.arange(int(size.sum())) - before
        yield position, np.repeat(nonempty[start:stop], size)
        start = stop


def _first_in(different: UInt64[np.ndarray, " hits"], band: int, radius: int) -> np.ndarray:
    """Return the mask of pairs that no earlier band finds, so that every pair is returned once."""
    new = np.ones(len(different), dtype=np.bool_)
    for earlier in range(band):
        new &= np.bitwise_count(_band(different, earlier)) > radius
    return new
