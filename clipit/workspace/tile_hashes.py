"""Hashes of the images of a data set, cached as artefacts that all runs share."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Shaped, UInt8

from clipit.distributed import build_once, get_processes
from clipit.output_files.artifacts import MANIFEST, artifact_folder, open_artifact
from clipit.output_files.whole_files import write_parquet
from clipit.pairing.blocks import read_blocks, write_blocks
from clipit.pairing.leaks import ImageHashes
from clipit.tiles.perceptual import SIDE, PerceptualHashes, perceptual_hashes, pixel_digest
from clipit.tiles.tileset import TileSet

_BLOCK = 4096  # tiles per file; an interrupted build resumes after the last complete file
_CHUNK = 64  # images in memory per thread
_FILE = "prints.parquet"  # not renamed, so that existing artefacts stay valid
_WIDTHS = {"digest": 16, "hashes": 64, "thumbnail": SIDE * SIDE}


def tile_hashes(root: Path, tiles: TileSet) -> PerceptualHashes:
    """Return perceptual hashes of all tiles, in order; computed by all processes if not cached.

    Raises:
        DataError: An image cannot be read.
    """
    if not len(tiles):
        return perceptual_hashes([])
    return _perceptual_hashes(_columns(root, "tile_hashes", tiles, _hash_table))


def tile_digests(root: Path, tiles: TileSet) -> UInt8[np.ndarray, "n 16"]:
    """Return digests of the decoded pixels of all tiles, in order; computed by all processes if not cached.

    Raises:
        DataError: An image cannot be read.
    """
    if not len(tiles):
        return np.zeros((0, _WIDTHS["digest"]), dtype=np.uint8)
    return _columns(root, "tile_digests", tiles, _digest_table)["digest"]


def cached_hashes(root: Path, tiles: str) -> tuple[Shaped[np.ndarray, " n"], ImageHashes] | None:
    """Return the cached ids and hashes of tiles, without reading their images; None if they were never hashed.

    Args:
        tiles: Fingerprint of the tiles when they were hashed.

    Returns:
        Ids, with perceptual hashes if they are cached, or else with digests of the pixels.

    Raises:
        ArtifactError: The hashes are damaged.
    """
    for kind in ("tile_hashes", "tile_digests"):
        folder = artifact_folder(root, kind, _inputs(tiles))
        if (folder / MANIFEST).is_file():
            table = open_artifact(folder, kind).table(_FILE)
            columns = {
                name: _bytes(table.column(name), _WIDTHS[name]) for name in table.column_names if name in _WIDTHS
            }
            ids = np.asarray(table.column("tile_id").to_pylist(), dtype=object)
            return ids, _perceptual_hashes(columns) if kind == "tile_hashes" else columns["digest"]
    return None


def _inputs(tiles: str) -> dict[str, Any]:
    return {"tiles": tiles, "version": 1}


def _perceptual_hashes(columns: Mapping[str, np.ndarray]) -> PerceptualHashes:
    return PerceptualHashes(
        digests=columns["digest"],
        hashes=columns["hashes"].view("<u8").astype(np.uint64),
        thumbnails=columns["thumbnail"].reshape(-1, SIDE, SIDE),
    )


def _columns(
    root: Path,
    kind: str,
    tiles: TileSet,
    hash_rows: Callable[[TileSet, Sequence[int]], pa.Table],
) -> dict[str, np.ndarray]:
    """Build the artefact if needed, calling `hash_rows` for each block; return its columns as uint8 [n, width]."""

    def make(folder: Path) -> dict[str, Any]:
        files = write_blocks(folder, len(tiles), _BLOCK, "hashing images", lambda rows: hash_rows(tiles, rows.tolist()))
        if not get_processes().main:
            return {}
        write_parquet(folder / _FILE, read_blocks(files))
        for file in files:
            file.unlink()
        return {"tiles": len(tiles)}

    table = build_once(root, kind, _inputs(tiles.fingerprint), make).table(_FILE)
    rows = {name: row for row, name in enumerate(table.column("tile_id").to_pylist())}
    table = table.take([rows[name] for name in tiles.ids.tolist()])
    return {name: _bytes(table.column(name), _WIDTHS[name]) for name in table.column_names if name in _WIDTHS}


def _hash_table(tiles: TileSet, rows: Sequence[int]) -> pa.Table:
    def hash_chunk(start: int) -> PerceptualHashes:
        return perceptual_hashes([tiles.read(row) for row in rows[start : start + _CHUNK]])

    with ThreadPoolExecutor(thread_name_prefix="hashes") as pool:
        chunks = list(pool.map(hash_chunk, range(0, len(rows), _CHUNK)))
    arrays = {
        "digest": np.concatenate([chunk.digests for chunk in chunks]),
        "hashes": np.concatenate([chunk.hashes for chunk in chunks]).astype("<u8"),
        "thumbnail": np.concatenate([chunk.thumbnails for chunk in chunks]),
    }
    return _table(tiles, rows, arrays)


def _digest_table(tiles: TileSet, rows: Sequence[int]) -> pa.Table:
    with ThreadPoolExecutor(thread_name_prefix="digests") as pool:
        digests = list(pool.map(lambda row: pixel_digest(tiles.read(row)), rows))
    return _table(tiles, rows, {"digest": np.stack(digests)})


def _table(tiles: TileSet, rows: Sequence[int], arrays: Mapping[str, np.ndarray]) -> pa.Table:
    columns = {
        name: pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(_WIDTHS[name]), len(rows), [None, pa.py_buffer(np.ascontiguousarray(values).tobytes())]
        )
        for name, values in arrays.items()
    }
    return pa.table({"tile_id": tiles.ids[np.asarray(rows)].tolist(), **columns})


def _bytes(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """Convert a column of fixed-size binaries to uint8 [n, width]."""
    return np.frombuffer(b"".join(column.to_pylist()), dtype=np.uint8).reshape(len(column), width)
