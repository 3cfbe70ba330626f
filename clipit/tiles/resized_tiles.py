"""Cache resized tiles on disk: one memory-mapped array, shared by runs and by processes on the same machine."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from clipit.distributed import build_once, get_processes
from clipit.errors import ArtifactError, counted, disk_errors
from clipit.images.read_ahead import ReadingClock
from clipit.output_files.artifacts import artifact_folder
from clipit.progress import progress
from clipit.tiles.pixel_source import MEMORY_LIMIT, Geometry, PixelSource
from clipit.tiles.tileset import TileSet

logger = logging.getLogger(__name__)

KIND = "resized_tiles"
_PIXELS = "pixels.npy"
_BLOCK = 1024
"""Tiles per block, which is the unit of work and of resuming."""
_BATCH = 64  # tiles read and written at a time
_SPARE = 1.05  # required free space, relative to the size of the array


def pixel_bytes(size: int, count: int) -> int:
    """Return the size in bytes of `count` tiles with an edge of `size` pixels."""
    return 3 * size * size * count


def worth_caching(count: int, total: int, size: int, *, reads: float, gigabytes: float, folder: Path) -> bool:
    """Return whether `training.cache_tiles=auto` caches tiles on disk; the result is the same in all processes.

    Tiles are cached if they are too large for the in-memory cache and fit on the disk, and if all tiles of the
    configuration fit within the budget. Each tile must also be read at least twice on average, because writing the
    cache reads each tile once.

    Args:
        count: Number of tiles to cache.
        total: Number of all tiles in the configuration, to which the budget applies.
        size: Edge length of the resized tiles in pixels.
        reads: Average number of times that a run reads each tile.
        gigabytes: Budget (`training.cache_gigabytes`).
        folder: Folder of the resized tiles (see `resized_folder`).
    """
    needed = pixel_bytes(size, count)
    worthwhile = needed >= MEMORY_LIMIT and pixel_bytes(size, total) <= gigabytes * 1e9 and reads >= 2
    started = folder.exists() or folder.with_name(folder.name + ".partial").exists()
    return get_processes().broadcast(worthwhile and (started or _free(folder) >= needed * _SPARE))


def resize_tiles(
    root: Path, tiles: TileSet, geometry: Geometry, size: int, preprocess: str, *, threads: int = 0
) -> UInt8[np.ndarray, "n 3 size size"]:
    """Write the resized tiles as one array, or open it if it exists; must be called by all processes.

    The blocks of tiles are distributed over processes; an interrupted call resumes with the missing blocks.

    Args:
        root: Artefact folder.
        tiles: Tiles to resize.
        geometry: Function that maps an image to its pixels at the model's input size.
        size: Edge length of the resized tiles in pixels.
        preprocess: Hash of everything that determines the resized pixels of an image.
        threads: Number of reader threads; 0 for one per available core, at most 8.

    Returns:
        Memory-mapped pixels, one row per tile.

    Raises:
        ArtifactError: The disk has too little space for the array, or the array is damaged.
        DataError: An image cannot be read.
    """
    shape = (len(tiles), 3, size, size)

    def make(folder: Path) -> dict[str, Any]:
        with disk_errors(folder):
            _write_blocks(folder, shape, PixelSource(tiles, geometry, threads=threads))
        return {"rows": len(tiles), "pixels": size, "gigabytes": round(pixel_bytes(size, len(tiles)) / 1e9, 3)}

    artifact = build_once(root, KIND, _inputs(tiles, size, preprocess), make)
    pixels: np.ndarray = artifact.array(_PIXELS, "r")
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise ArtifactError(
            f"the resized tiles have shape {pixels.shape}, expected {shape}",
            where=artifact.folder,
            fix="delete the folder and run the command again",
        )
    return pixels


def resized_folder(root: Path, tiles: TileSet, size: int, preprocess: str) -> Path:
    """Return the folder of the resized tiles, which need not exist; for the arguments, see `resize_tiles`."""
    return artifact_folder(root, KIND, _inputs(tiles, size, preprocess))


def _inputs(tiles: TileSet, size: int, preprocess: str) -> dict[str, Any]:
    return {"tiles": tiles.fingerprint, "preprocess": preprocess, "size": size}


def _write_blocks(folder: Path, shape: tuple[int, ...], source: PixelSource) -> None:
    """Write the missing blocks of the array, distributed over processes."""
    processes = get_processes()
    path, total = folder / _PIXELS, shape[0]
    if processes.main:
        _reserve(path, shape)
    starts = range(0, total, _BLOCK)
    missing = processes.broadcast([start for start in starts if not _mark(folder, start).is_file()])
    done = total - sum(min(_BLOCK, total - start) for start in missing)
    row_bytes = int(np.prod(shape[1:]))
    header = path.stat().st_size - row_bytes * total
    logger.info(
        f"{counted(total, 'resized tile is', 'resized tiles are')} cached on disk: {row_bytes * total / 1e9:.2f} GB in "
        f"{folder.parent}"
    )
    clock = ReadingClock()
    own_blocks = processes.share(missing)
    batches = [
        np.arange(first, min(first + _BATCH, start + _BLOCK, total))
        for start in own_blocks
        for first in range(start, min(start + _BLOCK, total), _BATCH)
    ]
    with (
        path.open("r+b") as stream,  # with a memory map, a full disk would crash the process
        progress("resizing tiles to disk", total, shown=processes.main, done=done) as advance,
    ):
        for rows, pixels in source.ahead(batches, clock=clock):
            stream.seek(header + int(rows[0]) * row_bytes)
            stream.write(pixels.data)
            if rows[-1] + 1 == total or (rows[-1] + 1) % _BLOCK == 0:
                stream.flush()
                os.fsync(stream.fileno())
                _mark(folder, int(rows[-1]) // _BLOCK * _BLOCK).touch()
            advance(len(rows) * processes.count)
    clock.report("resizing tiles to disk", "training.threads")


def _reserve(path: Path, shape: tuple[int, ...]) -> None:
    """Create the empty array, unless an interrupted attempt has left one of the same shape.

    Raises:
        ArtifactError: The disk has too little space.
    """
    if path.is_file():
        try:
            pixels = np.load(path, mmap_mode="r", allow_pickle=False)
            if pixels.shape == shape and pixels.dtype == np.uint8:
                return
        except (ValueError, EOFError):
            pass
        for mark in path.parent.glob(".block-*.tmp"):
            mark.unlink()
    needed, free = int(np.prod(shape)), _free(path.parent)
    if free < needed * _SPARE:
        raise ArtifactError(
            f"the cache of resized tiles takes {needed / 1e9:.1f} GB; the disk has {free / 1e9:.1f} GB left",
            where=path.parent,
            fix="free some space, choose a different folder with --output, or set training.cache_tiles=none",
        )
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)


def _mark(folder: Path, start: int) -> Path:
    """Return the empty file that records that a block is complete; `finish_partial` deletes it with temporary files."""
    return folder / f".block-{start}.tmp"


def _free(folder: Path) -> int:
    """Return the free disk space in bytes at a folder that may not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
