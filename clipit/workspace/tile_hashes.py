"""What the images of a data set look like, as artefacts made once for all runs: hashes of pixels, fingerprints."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8

from clipit.artifacts import whole_file
from clipit.distributed import build_once, get_processes
from clipit.progress import progress
from clipit.tiles.perceptual import SIDE, Fingerprints, fingerprints, pixel_digest
from clipit.tiles.tileset import TileSet

_BLOCK = 4096  # tiles per part, which a killed attempt leaves to the next
_AT_ONCE = 64  # images in one thread's memory
_WIDTHS = {"digest": 16, "hashes": 64, "thumbnail": SIDE * SIDE}


def tile_hashes(root: Path, tiles: TileSet) -> Fingerprints:
    """Fingerprints of all tiles in their order: opened when they exist, else made by all processes together.

    Raises:
        DataError: An image cannot be read.
    """
    if not len(tiles):
        return fingerprints([])
    columns = _columns(root, "tile_hashes", tiles, _print_table)
    return Fingerprints(
        digests=columns["digest"],
        hashes=columns["hashes"].view("<u8").astype(np.uint64),
        thumbnails=columns["thumbnail"].reshape(-1, SIDE, SIDE),
    )


def tile_digests(root: Path, tiles: TileSet) -> UInt8[np.ndarray, "n 16"]:
    """Hashes of the decoded pixels of all tiles in their order (`pixel_digest`), made as `tile_hashes` are.

    Raises:
        DataError: An image cannot be read.
    """
    if not len(tiles):
        return np.zeros((0, _WIDTHS["digest"]), dtype=np.uint8)
    return _columns(root, "tile_digests", tiles, _digest_table)["digest"]


def _columns(
    root: Path,
    kind: str,
    tiles: TileSet,
    look: Callable[[TileSet, Sequence[int]], pa.Table],
) -> dict[str, np.ndarray]:
    """The artefact's columns as uint8 [n, width], in the order of the tiles; `look` makes the table of some rows."""
    inputs = {"tiles": tiles.fingerprint, "version": 1}

    def make(folder: Path) -> dict[str, Any]:
        """Read every image once, each process its share of the blocks; the main one joins the parts."""
        processes = get_processes()
        starts = range(0, len(tiles), _BLOCK)
        with progress("looking for equal images", len(tiles), shown=processes.main) as advance:
            for start in processes.share(starts):
                part, rows = folder / f".part-{start:09d}.parquet", range(start, min(start + _BLOCK, len(tiles)))
                if not part.is_file():
                    with whole_file(part) as temporary:
                        pq.write_table(look(tiles, rows), temporary)
                advance(len(rows) * processes.count)
        processes.barrier()
        if not processes.main:
            return {}
        parts = [folder / f".part-{start:09d}.parquet" for start in starts]
        with whole_file(folder / "prints.parquet") as temporary:
            pq.write_table(pa.concat_tables([pq.read_table(part) for part in parts]), temporary)
        for part in parts:
            part.unlink()
        return {"tiles": len(tiles)}

    table = pq.read_table(build_once(root, kind, inputs, make).file("prints.parquet"))
    rows = {name: row for row, name in enumerate(table.column("tile_id").to_pylist())}
    table = table.take([rows[name] for name in tiles.ids.tolist()])
    return {name: _bytes(table.column(name), _WIDTHS[name]) for name in table.column_names if name in _WIDTHS}


def _print_table(tiles: TileSet, rows: Sequence[int]) -> pa.Table:
    """Fingerprints of some tiles, their images read by threads."""

    def some(start: int) -> Fingerprints:
        """Those of a few."""
        return fingerprints([tiles.read(row) for row in rows[start : start + _AT_ONCE]])

    with ThreadPoolExecutor(thread_name_prefix="prints") as pool:
        parts = list(pool.map(some, range(0, len(rows), _AT_ONCE)))
    arrays = {
        "digest": np.concatenate([part.digests for part in parts]),
        "hashes": np.concatenate([part.hashes for part in parts]).astype("<u8"),
        "thumbnail": np.concatenate([part.thumbnails for part in parts]),
    }
    return _table(tiles, rows, arrays)


def _digest_table(tiles: TileSet, rows: Sequence[int]) -> pa.Table:
    """Hashes of the pixels of some tiles, their images read by threads."""
    with ThreadPoolExecutor(thread_name_prefix="digests") as pool:
        digests = list(pool.map(lambda row: pixel_digest(tiles.read(row)), rows))
    return _table(tiles, rows, {"digest": np.stack(digests)})


def _table(tiles: TileSet, rows: Sequence[int], arrays: Mapping[str, np.ndarray]) -> pa.Table:
    """Tile ids beside fixed-size binaries."""
    columns = {
        name: pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(_WIDTHS[name]), len(rows), [None, pa.py_buffer(np.ascontiguousarray(values).tobytes())]
        )
        for name, values in arrays.items()
    }
    return pa.table({"tile_id": tiles.ids[np.asarray(rows)].tolist(), **columns})


def _bytes(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """A column of fixed-size binaries as uint8 [n, width]."""
    return np.frombuffer(b"".join(column.to_pylist()), dtype=np.uint8).reshape(len(column), width)
