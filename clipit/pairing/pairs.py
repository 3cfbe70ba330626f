"""Pairs of tiles with their nearest snippets, as an artefact."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int

from clipit.config.run import PairingConfig
from clipit.distributed import build_once, get_processes
from clipit.errors import ArtifactError, DataError, counted
from clipit.output_files.artifacts import REBUILD, Artifact, fingerprint, read_json, whole_file, write_json
from clipit.output_files.whole_files import write_array
from clipit.pairing.blocks import iterate_blocks, read_blocks, write_passes, write_tables
from clipit.pairing.nearest import search
from clipit.pairing.pair_rules import (
    REASONS,
    check_pairs_left,
    find_candidates,
    judged_table,
    kept_pairs,
    pair_table,
    prepare_selection,
    rule_inputs,
)
from clipit.pairing.pair_statistics import summarise
from clipit.pairing.recall import fit_search
from clipit.pairing.sources import joined_slides
from clipit.stores.approximate import SearchSettings
from clipit.stores.check import check_finite, check_shards
from clipit.stores.embed import Store
from clipit.stores.exact import blocks_per_pass
from clipit.stores.index import Index
from clipit.stores.stored_rows import centred_rows

logger = logging.getLogger(__name__)

__all__ = ["Pairs", "check_same_encoder", "pair_tiles", "search"]


@dataclass(frozen=True)
class Pairs:
    """Pairs on disk: tile_id, rank (from 0), snippet_id, score (cosine), and weight if score_temperature is set."""

    artifact: Artifact

    @cached_property
    def table(self) -> pa.Table:
        """All pairs, by tile in the tile store's order, then by rank."""
        return self.artifact.table("pairs.parquet")

    @cached_property
    def tile_mean(self) -> Float32[np.ndarray, "dim"] | None:
        """Mean subtracted from the tile embeddings; None without centring."""
        name = "tile_mean.npy"
        return self.artifact.array(name) if name in self.artifact.manifest.files else None

    @property
    def summary(self) -> dict[str, Any]:
        """Statistics from `summarise`."""
        return read_json(self.artifact.file("summary.json"), REBUILD)

    def as_searched(self, index: Index) -> Index:
        """Return the index with the search settings used for these pairs, including those chosen automatically."""
        recall = self.summary.get("recall")
        if index.flat or recall is None:
            return index
        return replace(index, settings=SearchSettings(recall["nprobe"], recall["ef_search"], recall["candidates"]))


def check_same_encoder(index: Index, tiles: Store) -> None:
    """Check that an index and a tile store come from the same VLM and are in its joint space.

    Raises:
        ArtifactError: The VLMs differ, or the tiles are not in the joint space.
    """
    if tiles.space != "joint":
        raise ArtifactError(
            f"the tiles are embedded in the {tiles.space} space, which has no text embeddings",
            where=tiles.artifact.folder,
            fix="embed the tiles in the joint space",
        )
    if index.store.vlm["fingerprint"] != tiles.vlm["fingerprint"]:
        raise ArtifactError(
            f"the snippets were embedded with {index.store.vlm['name']} ({index.store.vlm['fingerprint']}), but the "
            f"tiles with {tiles.vlm['name']} ({tiles.vlm['fingerprint']})",
            where=f"{index.artifact.folder} and {tiles.artifact.folder}",
            fix="build both with the same `vlm`",
        )


def pair_tiles(
    root: Path,
    index: Index,
    tiles: Store,
    *,
    k: int = 1,
    block: int = 4096,
    rules: PairingConfig | None = None,
    sources: pa.Table | None = None,
    groups: Mapping[str, str] | None = None,
) -> Pairs:
    """Pair all tiles of a store with their nearest snippets.

    Args:
        tiles: Tile store from the same VLM.
        k: Maximum number of snippets per tile.
        block: Number of tiles per search, to bound memory.
        rules: Pairing rules; their k, block and index are ignored. None for no rules.
        sources: The table `snippet_sources`, for the rules `organs`, `exclude_same_group` and `reports`.
        groups: Tile id -> group, for `exclude_same_group` and `reports`.

    Raises:
        ArtifactError: Index and tiles come from different VLMs.
        ConfigError: A rule needs all scores, and the index is not Flat.
        DataError: There are no tiles, an embedding is not finite, or the rules leave no pairs.
    """
    check_same_encoder(index, tiles)
    if not tiles.size:
        raise DataError(
            "there are no training tiles to pair", where="tiles", fix="assign tiles to the train split (tiles.splits)"
        )
    rules = rules or PairingConfig()
    rule_keys = rule_inputs(rules)
    inputs = {
        "index": index.artifact.fingerprint,
        "tiles": tiles.fingerprint,
        "k": k,
        "nprobe": index.settings.nprobe,
        **rule_keys,
    }
    if not index.flat:
        inputs |= {"ef_search": index.settings.ef_search, "candidates": index.settings.candidates}
    if rules.exclude_same_group or rules.reports != "any":
        inputs["groups"] = fingerprint([(groups or {}).get(tile, "") for tile in tiles.ids.tolist()])
    if rules.exclude_same_group and (joined := joined_slides(sources, tiles, groups)):
        inputs["joined_slides"] = fingerprint(sorted(joined.items()))

    def make(folder: Path) -> dict[str, Any]:
        processes = get_processes()
        for store, items in ((tiles, "tiles"), (index.store, "snippets")):
            check_shards(store)
            check_finite(store, items)
        mean = tiles.mean() if index.mean is not None else None
        searched, recall = fit_search(index, tiles, mean, k) if not index.flat else (index, None)
        selection = prepare_selection(
            searched, tiles, rules, block=block, sources=sources, groups=groups, shown=processes.main
        )

        def pair(blocks: Sequence[Int[np.ndarray, "_"]], shared: bool) -> Iterator[pa.Table]:
            rows = np.concatenate(blocks)
            ends = np.cumsum([len(block_rows) for block_rows in blocks]).tolist()
            parts = [slice(end - len(block_rows), end) for end, block_rows in zip(ends, blocks, strict=True)]
            queries = centred_rows(tiles, rows, mean)
            if rule_keys:
                candidates = find_candidates(selection, queries, selection.owners[rows], k, block=block, shared=shared)
                for part in parts:
                    yield judged_table(tiles.ids_at(rows[part]), selection, candidates.part(part))
                return
            nearest, scores = search(searched, queries, k, block=block, shared=shared)
            for part in parts:
                yield pair_table(tiles.ids_at(rows[part]), index, nearest[part], scores[part])

        per_pass, shards = (blocks_per_pass(block, tiles.dim), index.store.shards) if index.flat else (1, 1)
        files = write_passes(folder, tiles.size, block, "pairing tiles", pair, per_pass=per_pass, shards=shards)
        outcomes = _count_outcomes(files)
        missing = tiles.size * min(k, index.size) - int(outcomes.sum())
        if missing and not index.flat and processes.main:
            key = index.artifact.manifest.facts["key"]
            logger.info(
                f"note: index {key} returned {counted(missing, 'fewer candidate')} than requested ({k} per tile); "
                "use pairing.index=Flat to find all"
            )
        if rule_keys and not outcomes[0]:
            check_pairs_left(read_blocks(files), rules)
        processes.barrier()
        if not processes.main:
            return {}
        with whole_file(folder / "pairs.parquet") as temporary:
            write_tables(temporary, (kept_pairs(table)[0] if rule_keys else table for table in iterate_blocks(files)))
            pairs = pq.read_table(temporary)
        if mean is not None:
            write_array(folder / "tile_mean.npy", mean)
        dropped = {name: count for name, count in zip(REASONS[1:], outcomes[1:].tolist(), strict=True) if count}
        summary = summarise(pairs, index.size, n_tiles=tiles.size, dropped=dropped, recall=recall)
        write_json(folder / "summary.json", summary)
        for file in folder.glob(".part-*.parquet"):  # including those with other block sizes
            file.unlink()
        return {"tiles": tiles.size, "pairs": pairs.num_rows, "k": k, "vlm": tiles.vlm}

    return Pairs(build_once(root, "pairs", inputs, make))


def _count_outcomes(files: Sequence[Path]) -> Int[np.ndarray, "outcomes"]:
    """Count the pairs of all blocks by outcome (index in `REASONS`); without rules, all are kept."""
    counts = np.zeros(len(REASONS), dtype=np.int64)
    for table in iterate_blocks(files):
        judged = "reason" in table.column_names
        reasons = np.asarray(table.column("reason")) if judged else np.zeros(table.num_rows, dtype=np.int8)
        counts += np.bincount(reasons, minlength=len(REASONS))
    return counts
