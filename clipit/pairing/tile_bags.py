"""Tile bags: the nearest tiles of each training tile, as an artefact.

Bags follow CPLIP (CVPR 2024), except that distant members are dropped and only training tiles are members.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int

from clipit.distributed import build_once, get_processes
from clipit.errors import DataError
from clipit.output_files.artifacts import Artifact, fingerprint
from clipit.output_files.whole_files import write_parquet
from clipit.pairing.blocks import read_blocks, write_passes
from clipit.pairing.nearest import SPARE, Keys, best_first, exact_cosines, nearest
from clipit.pairing.pairs import Pairs
from clipit.pairing.text_bags import gather_by_row
from clipit.stores.check import check_finite
from clipit.stores.embed import Store
from clipit.stores.exact import blocks_per_pass
from clipit.stores.index import Index
from clipit.stores.stored_rows import StoredRows, centred_rows

KINDS = ("image", "text")
"""Kinds of members: nearest to the tile's own embedding, or to the embedding of its first snippet."""


@dataclass(frozen=True)
class TileBags:
    """Bags of tiles on disk: tile_id, kind, rank (0 is nearest), member_id, score (cosine)."""

    artifact: Artifact

    @cached_property
    def table(self) -> pa.Table:
        """All members, by tile in the tile store's order, then by kind and rank."""
        return self.artifact.table("tile_bags.parquet")

    @property
    def empty(self) -> list[str]:
        """Ids of tiles without members."""
        ids: list[str] = self.artifact.table("empty.parquet").column("tile_id").to_pylist()
        return ids

    @property
    def pruned(self) -> int:
        """Number of members dropped by the margin."""
        return int(self.artifact.manifest.facts["pruned"])

    def rows(self, tile_ids: np.ndarray, store: Store) -> Int[np.ndarray, "n members"]:
        """Return the tile-store rows of each tile's members, without duplicates, padded with -1.

        Args:
            tile_ids: Tile ids, in any order.
        """
        row_of = {tile: row for row, tile in enumerate(tile_ids.tolist())}
        rows = np.asarray([row_of.get(t, -1) for t in self.table.column("tile_id").to_pylist()], dtype=np.int64)
        members = store.positions(self.table.column("member_id").to_pylist())
        # Keep a member of both kinds only once, at its first position.
        _, first = np.unique(np.stack([rows, members], axis=1), axis=0, return_index=True)
        first = np.sort(first[rows[first] >= 0])
        return gather_by_row(rows[first], members[first], len(tile_ids))


def tile_bags(
    root: Path,
    tiles: Store,
    k: int,
    *,
    mean: Float32[np.ndarray, "dim"] | None = None,
    pairs: Pairs | None = None,
    index: Index | None = None,
    groups: Mapping[str, str] | None = None,
    margin: float | None = None,
    block: int = 4096,
) -> TileBags:
    """Build the bags of all tiles of a store: the nearest other tiles, and the tiles nearest to the first snippet.

    Args:
        k: Number of members per kind.
        mean: Mean to subtract from the tile embeddings; None for no centring.
        pairs: Pairs with each tile's first snippet; None to use only the nearest other tiles.
        index: Snippet index of the pairs.
        groups: Tile id -> group; bags exclude tiles of the same group. None to exclude only the tile itself.
        margin: Maximum difference between a member's cosine and the highest of its kind; members beyond it are
            dropped. None to keep all.
        block: Number of tiles per matrix product, to bound memory.

    Raises:
        DataError: There are no tiles, or an embedding is not finite.
    """
    if not len(tiles.ids):
        raise DataError(
            "there are no training tiles to build bags from",
            where=tiles.artifact.folder,
            fix="assign tiles to the train split with tiles.splits",
        )
    inputs: dict[str, Any] = {
        "tiles": tiles.fingerprint,
        "k": k,
        "mean": None if mean is None else fingerprint(mean.tolist()),
        "pairs": None if pairs is None else pairs.artifact.fingerprint,
        "groups": None if groups is None else fingerprint([groups.get(tile, "") for tile in tiles.ids.tolist()]),
        "margin": margin,
    }

    def make(folder: Path) -> dict[str, Any]:
        processes = get_processes()
        check_finite(tiles, "tiles")
        by_id = np.argsort(tiles.ids, kind="stable")
        keys, owners = _tile_keys(tiles, mean, groups, by_id)
        first = None if pairs is None or index is None else first_snippets(tiles.ids, pairs, index)

        def find_members(blocks: Sequence[Int[np.ndarray, "_"]], shared: bool) -> Iterator[pa.Table]:
            rows = np.concatenate(blocks)
            queries = [centred_rows(tiles, rows, mean)]
            if first is not None and index is not None:
                queries.append(index.vectors(np.maximum(first[rows], 0)))
            kinds = len(queries)
            values = _members(np.concatenate(queries), np.tile(owners[rows], kinds), keys, k, margin, block, shared)
            members, scores, far = (value.reshape(kinds, len(rows), -1) for value in values)
            if first is not None and kinds > 1:
                scores[1, first[rows] < 0], far[1, first[rows] < 0] = -np.inf, False
            for part in np.split(np.arange(len(rows)), np.cumsum([len(block_rows) for block_rows in blocks])[:-1]):
                by_kind = [(members[kind, part], scores[kind, part], far[kind, part]) for kind in range(kinds)]
                yield _bag_table(tiles.ids[rows[part]], tiles.ids[by_id], by_kind)

        per_pass = max(1, blocks_per_pass(block, tiles.dim) // 2)  # two kinds of queries
        files = write_passes(
            folder, tiles.size, block, "building tile bags", find_members, per_pass=per_pass, shards=tiles.shards
        )
        if not processes.main:
            return {}
        table = read_blocks(files)
        far = np.asarray(table.column("far"))
        table = table.filter(pa.array(~far)).drop_columns(["far"])
        write_parquet(folder / "tile_bags.parquet", table)
        with_members = set(table.column("tile_id").to_pylist())
        empty = [tile for tile in tiles.ids.tolist() if tile not in with_members]
        write_parquet(folder / "empty.parquet", pa.table({"tile_id": pa.array(empty, pa.string())}))
        for file in files:
            file.unlink()
        return {"tiles": len(tiles.ids), "members": table.num_rows, "pruned": int(far.sum()), "empty": len(empty)}

    return TileBags(build_once(root, "tile_bags", inputs, make))


def first_snippets(tile_ids: np.ndarray, pairs: Pairs, index: Index) -> Int[np.ndarray, "n"]:
    """Return the index row of each tile's first snippet; -1 for tiles without a pair."""
    table = pairs.table.filter(pa.array(np.asarray(pairs.table.column("rank")) == 0))
    snippets = np.asarray(table.column("snippet_id").to_pylist(), dtype=np.str_)
    row_of = dict(zip(table.column("tile_id").to_pylist(), np.searchsorted(index.ids, snippets).tolist(), strict=True))
    return np.asarray([row_of.get(tile, -1) for tile in tile_ids.tolist()], dtype=np.int64)


def _tile_keys(
    tiles: Store, mean: Float32[np.ndarray, "dim"] | None, groups: Mapping[str, str] | None, by_id: Int[np.ndarray, "n"]
) -> tuple[Keys, Int[np.ndarray, "n"]]:
    """Return all tiles as keys, ordered by id, and the owner number of each row of the store.

    The owner of a tile is its group, or the tile itself if its group is unknown.
    """
    n = len(tiles.ids)
    names = [(groups or {}).get(tile, "") for tile in tiles.ids.tolist()]
    labels = [f"group {name}" if name else f"tile {tile}" for name, tile in zip(names, tiles.ids.tolist(), strict=True)]
    owners = np.unique(np.asarray(labels, dtype=np.str_), return_inverse=True)[1].astype(np.int64)
    numbers = np.empty(n, dtype=np.int64)
    numbers[by_id] = np.arange(n)
    return Keys(StoredRows(tiles, mean, by_id, numbers), np.zeros(n), owners[by_id]), owners


def _members(
    queries: Float32[np.ndarray, "b dim"],
    owners: Int[np.ndarray, "b"],
    keys: Keys,
    k: int,
    margin: float | None,
    block: int,
    shared: bool,
) -> tuple[Int[np.ndarray, "b k"], Float32[np.ndarray, "b k"], Bool[np.ndarray, "b k"]]:
    """Find the k nearest tiles of other owners: key rows, cosines (-inf for none), and a mask of dropped tiles."""
    rows = nearest(queries, owners, keys, min(k + SPARE, len(keys.stored)), block=block, shared=shared)
    scores = exact_cosines(queries, keys.stored, rows)
    order = best_first(rows, scores, k)
    rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
    best = scores[:, :1]
    far = np.zeros(scores.shape, dtype=np.bool_) if margin is None else scores < best - np.float32(margin)
    return rows, scores, far & np.isfinite(scores)


def _bag_table(
    tile_ids: np.ndarray,
    member_ids: np.ndarray,
    kinds: list[tuple[Int[np.ndarray, "b k"], Float32[np.ndarray, "b k"], Bool[np.ndarray, "b k"]]],
) -> pa.Table:
    """List the members of a block of tiles, with the column `far` for members that the margin drops."""
    tile, kind, rank = np.nonzero(np.isfinite(np.stack([scores for _, scores, _ in kinds], axis=1)))
    members, scores, far = (np.stack(values, axis=1)[tile, kind, rank] for values in zip(*kinds, strict=True))
    return pa.table(
        {
            "tile_id": pa.array(tile_ids[tile].tolist(), pa.string()),
            "kind": pa.array(np.asarray(KINDS)[kind].tolist(), pa.string()),
            "rank": pa.array(rank, pa.int16()),
            "member_id": pa.array(member_ids[members].tolist(), pa.string()),
            "score": pa.array(scores, pa.float32()),
            "far": pa.array(far, pa.bool_()),
        }
    )
