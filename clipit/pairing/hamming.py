"""All pairs of 64-bit hashes that differ in few bits, without comparing each with each.

The 64 bits are four bands of 16. Of two hashes that differ in at most d bits, one band differs in at most d // 4
(pigeonhole). So it is enough to look up, per band, every value within d // 4 bits of the query's (multi-index hashing,
arXiv 1307.2982), and to count bits for what is found there.
"""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from jaxtyping import Int64, UInt8, UInt64

_BANDS, _WIDTH = 4, 16
_AT_ONCE = 2**22  # candidates in memory

Hits = tuple[Int64[np.ndarray, " hits"], Int64[np.ndarray, " hits"], UInt8[np.ndarray, " hits"]]


def near_hashes(base: UInt64[np.ndarray, " n"], queries: UInt64[np.ndarray, " m"], distance: int) -> Iterator[Hits]:
    """Every pair within a Hamming distance, once: rows of the base, rows of the queries, distances; in portions.

    The memory does not depend on the number of pairs.

    Args:
        base: What is searched.
        queries: What is looked up.
        distance: Most different bits; up to 7 it is fast, above that eight times slower.
    """
    radius = distance // _BANDS
    near = [sum(1 << bit for bit in bits) for r in range(radius + 1) for bits in combinations(range(_WIDTH), r)]
    for band in range(_BANDS):
        keys = _band(base, band)
        order = np.argsort(keys, kind="stable")
        ordered = base[order]
        starts = np.searchsorted(keys[order], np.arange(2**_WIDTH + 1))
        wanted = _band(queries, band)
        for mask in near:
            probe = wanted ^ mask
            for found, query in _candidates(starts[probe], starts[probe + 1]):
                bits = np.bitwise_count(ordered[found] ^ queries[query])
                hit = np.flatnonzero(bits <= distance)
                rows, query, bits = order[found[hit]], query[hit], bits[hit]
                new = _first_in(base[rows] ^ queries[query], band, radius)
                if new.any():
                    yield rows[new], query[new], bits[new]


def _band(hashes: UInt64[np.ndarray, " n"], band: int) -> Int64[np.ndarray, " n"]:
    """The 16 bits of one band as numbers."""
    return ((hashes >> np.uint64(band * _WIDTH)) & np.uint64(2**_WIDTH - 1)).astype(np.int64)


def _candidates(
    first: Int64[np.ndarray, " m"], end: Int64[np.ndarray, " m"]
) -> Iterator[tuple[Int64[np.ndarray, " c"], Int64[np.ndarray, " c"]]]:
    """The ranges `first[q]:end[q]` written out, with q beside each place; some millions at a time."""
    asked = np.flatnonzero(end > first)
    counts = (end - first)[asked]
    totals = np.concatenate([[0], np.cumsum(counts)])
    start = 0
    while start < len(asked):
        stop = max(start + 1, int(np.searchsorted(totals, totals[start] + _AT_ONCE, side="right")) - 1)
        size = counts[start:stop]
        before = np.repeat(totals[start:stop] - totals[start], size)
        place = np.repeat(first[asked[start:stop]], size) + np.arange(int(size.sum())) - before
        yield place, np.repeat(asked[start:stop], size)
        start = stop


def _first_in(different: UInt64[np.ndarray, " hits"], band: int, radius: int) -> np.ndarray:
    """Whether this band is the first that would find these pairs: each is then given once."""
    new = np.ones(len(different), dtype=np.bool_)
    for earlier in range(band):
        new &= np.bitwise_count(_band(different, earlier)) > radius
    return new
