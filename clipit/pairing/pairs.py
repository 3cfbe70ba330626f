"""Search: for each tile its nearest snippets, by id."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32

from clipit.artifacts import Artifact, fingerprint, whole_file, write_json
from clipit.config.run import PairingConfig
from clipit.distributed import build_once, get_processes
from clipit.errors import ArtifactError, DataError, explain
from clipit.pairing.nearest import check_finite, search
from clipit.pairing.pair_tables import judged_table, kept_pairs, pair_table
from clipit.pairing.selection import check_some_left, find, prepare, rule_inputs
from clipit.pairing.summary import summarise
from clipit.progress import progress
from clipit.stores.embed import Store, centred
from clipit.stores.index import Index

__all__ = ["Pairs", "check_same_encoder", "pair_tiles", "search"]


@dataclass(frozen=True)
class Pairs:
    """Pairs on disk: tile_id, rank (0 is first), snippet_id, score (cosine); weight, if score_temperature is set."""

    artifact: Artifact

    @cached_property
    def table(self) -> pa.Table:
        """All pairs, by tile in the tile store's order, then by rank."""
        return pq.read_table(self.artifact.file("pairs.parquet"))

    @cached_property
    def tile_mean(self) -> Float32[np.ndarray, "dim"] | None:
        """The mean that was subtracted from the tiles, if any."""
        file = self.artifact.file("tile_mean.npy")
        return np.load(file) if file.is_file() else None

    @property
    def summary(self) -> dict[str, Any]:
        """What `summarise` found."""
        import json

        found: dict[str, Any] = json.loads(self.artifact.file("summary.json").read_text(encoding="utf-8"))
        return found


def check_same_encoder(index: Index, tiles: Store) -> None:
    """Refuse an index and a tile store of different encoders.

    Raises:
        ArtifactError: Naming both.
    """
    if tiles.space != "joint":
        raise ArtifactError(
            explain(
                f"the tiles were embedded in the {tiles.space} space, in which there is no text",
                where=tiles.artifact.folder,
                fix="pair tiles of the joint space",
            )
        )
    if index.store.vlm["fingerprint"] != tiles.vlm["fingerprint"]:
        raise ArtifactError(
            explain(
                f"the index holds texts of {index.store.vlm['name']} ({index.store.vlm['fingerprint']}), "
                f"the tiles were embedded by {tiles.vlm['name']} ({tiles.vlm['fingerprint']})",
                where=f"{index.artifact.folder} and {tiles.artifact.folder}",
                fix="build both with the same `vlm`",
            )
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
    """The pairs of all tiles of a store.

    Args:
        root: Output root.
        index: Over the snippets.
        tiles: Tile store of the same encoder.
        k: Snippets per tile.
        block: Tiles searched at once; the memory depends on it, not on the number of tiles.
        rules: Correction, threshold and the other keys after these; its k, block and index do not count. None: none.
        sources: Table snippet_sources, where a rule needs it (organs, exclude_same_group).
        groups: Tile id -> group, for exclude_same_group.

    Raises:
        ArtifactError: Index and tiles come from different encoders.
        ConfigError: A rule needs all scores, and the index is not Flat.
        DataError: There is no tile, an embedding is not finite, or the rules leave no pair.
    """
    check_same_encoder(index, tiles)
    if not len(tiles.ids):
        raise DataError(
            explain("there is no training tile to pair", where="tiles", fix="give tiles of split train: tiles.splits")
        )
    rules = rules or PairingConfig()
    ruled = rule_inputs(rules)
    inputs = {"index": index.artifact.fingerprint, "tiles": tiles.fingerprint, "k": k, "nprobe": index.nprobe, **ruled}
    if rules.exclude_same_group:
        inputs["groups"] = fingerprint([(groups or {}).get(tile, "") for tile in tiles.ids.tolist()])

    def make(folder: Path) -> dict[str, Any]:
        """Search block by block, each process its share; the main one joins the parts."""
        processes = get_processes()
        check_finite(tiles, "tiles")
        check_finite(index.store, "snippets")
        mean = tiles.mean() if index.mean is not None else None
        chosen = prepare(index, tiles, rules, block=block, sources=sources, groups=groups, shown=processes.main)
        starts = range(0, len(tiles.ids), block)
        with progress("pairing tiles", len(tiles.ids), shown=processes.main) as advance:
            for start in processes.share(starts):
                rows = np.arange(start, min(start + block, len(tiles.ids)))
                part = folder / f".part-{start:09d}-{block}.parquet"
                if not part.is_file():
                    queries = centred(tiles.rows(rows), mean)
                    if ruled:
                        table = judged_table(tiles.ids[rows], chosen, find(chosen, queries, chosen.owners[rows], k))
                    else:
                        found, scores = search(index, queries, k)
                        table = pair_table(tiles.ids[rows], index.ids, found, scores)
                    with whole_file(part) as temporary:
                        pq.write_table(table, temporary)
                advance(len(rows) * processes.count)
        processes.barrier()
        table = pa.concat_tables([pq.read_table(folder / f".part-{start:09d}-{block}.parquet") for start in starts])
        dropped: dict[str, int] = {}
        if ruled:
            check_some_left(table, rules)
            table, dropped = kept_pairs(table)
        processes.barrier()
        if not processes.main:
            return {}
        with whole_file(folder / "pairs.parquet") as temporary:
            pq.write_table(table, temporary)
        if mean is not None:
            with whole_file(folder / "tile_mean.npy") as temporary, temporary.open("wb") as stream:
                np.save(stream, mean)
        write_json(folder / "summary.json", summarise(table, len(index.ids), n_tiles=len(tiles.ids), dropped=dropped))
        for part in folder.glob(".part-*.parquet"):
            part.unlink()
        return {"tiles": len(tiles.ids), "pairs": table.num_rows, "k": k, "vlm": tiles.vlm}

    return Pairs(build_once(root, "pairs", inputs, make))
