"""Search: for each tile its nearest snippets, by id."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int

from clipit.artifacts import Artifact, whole_file, write_json
from clipit.distributed import build_once, processes
from clipit.embedding import Store, centred
from clipit.errors import ArtifactError, DataError, explain
from clipit.index import Index
from clipit.pairing.summary import summarise
from clipit.progress import progress

_SPARE = 4  # candidates beyond k, so that ties at the edge are seen
_DECIMALS = 6  # scores nearer than this are ties; float error must not decide


@dataclass(frozen=True)
class Pairs:
    """Pairs on disk: tile_id, rank (0 is nearest), snippet_id, score (cosine)."""

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


def search(
    index: Index, queries: Float32[np.ndarray, "q dim"], k: int
) -> tuple[Int[np.ndarray, "q k"], Float32[np.ndarray, "q k"]]:
    """Rows of the index and cosines of the k nearest snippets, nearest first, ties by lowest id.

    The index proposes a few more than k; their cosines are computed again, exactly and in the same order of
    operations for every batch size, and rounded before sorting.

    Args:
        index: What to search.
        queries: Unit vectors, centred as the index is.
        k: Snippets per query; fewer come back when the index holds fewer.
    """
    wide = min(k + _SPARE, len(index.ids))
    rows = index.candidates(queries, wide)
    vectors = index.vectors(np.maximum(rows, 0))
    scores = np.einsum("qd,qkd->qk", queries, vectors).round(_DECIMALS)
    scores[rows < 0] = -np.inf
    order = np.lexsort((rows, -scores), axis=1)[:, :k]  # rows of the index ascend by id
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1).astype(np.float32)


def check_same_encoder(index: Index, tiles: Store) -> None:
    """Refuse an index and a tile store of different encoders.

    Raises:
        ArtifactError: Naming both.
    """
    if index.store.vlm["fingerprint"] != tiles.vlm["fingerprint"]:
        raise ArtifactError(
            explain(
                f"the index holds texts of {index.store.vlm['name']} ({index.store.vlm['fingerprint']}), "
                f"the tiles were embedded by {tiles.vlm['name']} ({tiles.vlm['fingerprint']})",
                where=f"{index.artifact.folder} and {tiles.artifact.folder}",
                fix="build both with the same `vlm`",
            )
        )


def pair_tiles(root: Path, index: Index, tiles: Store, *, k: int = 1, block: int = 4096) -> Pairs:
    """The pairs of all tiles of a store.

    Args:
        root: Output root.
        index: Over the snippets.
        tiles: Tile store of the same encoder.
        k: Snippets per tile.
        block: Tiles searched at once; the memory depends on it, not on the number of tiles.

    Raises:
        ArtifactError: Index and tiles come from different encoders.
        DataError: There is no tile.
    """
    check_same_encoder(index, tiles)
    if not len(tiles.ids):
        raise DataError(
            explain("there is no training tile to pair", where="tiles", fix="give tiles of split train: tiles.splits")
        )
    inputs = {"index": index.artifact.fingerprint, "tiles": tiles.fingerprint, "k": k, "nprobe": index.nprobe}

    def make(folder: Path) -> dict[str, Any]:
        """Search block by block, each process its share; the main one joins the parts."""
        here = processes()
        mean = tiles.mean() if index.mean is not None else None
        starts = range(0, len(tiles.ids), block)
        with progress("pairing tiles", len(tiles.ids), shown=here.main) as advance:
            for start in here.share(starts):
                rows = np.arange(start, min(start + block, len(tiles.ids)))
                part = folder / f".part-{start:09d}-{block}.parquet"
                if not part.is_file():
                    found, scores = search(index, centred(tiles.rows(rows), mean), k)
                    with whole_file(part) as temporary:
                        pq.write_table(_pair_table(tiles.ids[rows], index.ids, found, scores), temporary)
                advance(len(rows) * here.count)
        here.wait()
        if not here.main:
            return {}
        parts = [folder / f".part-{start:09d}-{block}.parquet" for start in starts]
        table = pa.concat_tables([pq.read_table(part) for part in parts])
        with whole_file(folder / "pairs.parquet") as temporary:
            pq.write_table(table, temporary)
        if mean is not None:
            with whole_file(folder / "tile_mean.npy") as temporary, temporary.open("wb") as stream:
                np.save(stream, mean)
        write_json(folder / "summary.json", summarise(table, len(index.ids)))
        for part in folder.glob(".part-*.parquet"):
            part.unlink()
        return {"tiles": len(tiles.ids), "pairs": table.num_rows, "k": k, "vlm": tiles.vlm}

    return Pairs(build_once(root, "pairs", inputs, make))


def _pair_table(
    tile_ids: np.ndarray, snippet_ids: np.ndarray, rows: Int[np.ndarray, "q k"], scores: Float32[np.ndarray, "q k"]
) -> pa.Table:
    valid = np.isfinite(scores)
    tile, rank = np.nonzero(valid)
    return pa.table(
        {
            "tile_id": pa.array(tile_ids[tile].tolist(), pa.string()),
            "rank": pa.array(rank, pa.int16()),
            "snippet_id": pa.array(snippet_ids[rows[valid]].tolist(), pa.string()),
            "score": pa.array(scores[valid], pa.float32()),
        }
    )
