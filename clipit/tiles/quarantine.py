"""Quarantine: decode every image once, and drop the tiles whose image cannot be decoded."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import Bool

from clipit.errors import DataError, counted, shortlist
from clipit.images.decode import Unreadable
from clipit.tiles.tileset import TileSet

_BLOCK = 1024  # images between updates of the progress bar
_BAR_AFTER_S = 2.0  # seconds before the progress bar appears


def check_images(tiles: TileSet, policy: Literal["error", "quarantine"]) -> TileSet:
    """Drop, count and list the tiles whose image cannot be decoded.

    With `quarantine`, every image is decoded once. With `error`, no image is decoded here, and `TileSet.read` raises
    an error for a damaged tile.

    Raises:
        DataError: A file cannot be opened, or no image of a split can be decoded.
    """
    if policy == "error" or not len(tiles):
        return tiles
    unreadable = np.asarray([isinstance(result, Unreadable) for result in _decode_all(tiles)])
    if unreadable.all():
        first = tiles.try_read(0)
        reason = first.reason if isinstance(first, Unreadable) else ""
        raise DataError(
            f"none of the {counted(len(tiles), 'image')} can be decoded: {reason}",
            where=tiles.reader.where(int(tiles.rows[0])),
            fix="convert files in an unsupported format, and replace damaged files",
        )
    if not unreadable.any():
        return tiles
    _check_empty_splits(tiles, unreadable)
    ids = tuple(tiles.ids[unreadable].tolist())
    note = f"dropped {len(ids)} of {counted(len(tiles), 'image')} (cannot be decoded): {shortlist(ids)}"
    return replace(tiles.select(~unreadable), quarantined=(*tiles.quarantined, *ids), notes=(*tiles.notes, note))


def _check_empty_splits(tiles: TileSet, unreadable: Bool[np.ndarray, "n"]) -> None:
    empty = sorted(set(tiles.splits.tolist()) - set(tiles.splits[~unreadable].tolist()))
    if empty:
        first = int(np.flatnonzero(unreadable & (tiles.splits == empty[0]))[0])
        raise DataError(
            f"none of the {counted(int((tiles.splits == empty[0]).sum()), 'image')} in the split {empty[0]} can be "
            "decoded",
            where=tiles.reader.where(int(tiles.rows[first])),
            fix="check that these files are complete images, or remove them from the data set",
        )


def _decode_all(tiles: TileSet) -> Iterator[object]:
    """Yield the results of `try_read` in order, None for decoded images; show a progress bar after two seconds."""
    from rich.console import Console
    from rich.progress import Progress

    def outcome(index: int) -> Unreadable | None:
        result = tiles.try_read(index)
        return result if isinstance(result, Unreadable) else None

    started = time.monotonic()
    progress = Progress(console=Console(stderr=True), transient=True)
    task = progress.add_task("checking all images", total=len(tiles))
    try:
        with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
            for start in range(0, len(tiles), _BLOCK):
                block = range(start, min(start + _BLOCK, len(tiles)))
                yield from pool.map(outcome, block)
                if time.monotonic() - started > _BAR_AFTER_S and not progress.live.is_started:
                    progress.start()
                progress.update(task, completed=block.stop)
    finally:
        progress.stop()
