"""Batches of resized tiles: read-ahead, copies to a device, and time spent waiting."""

import os
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipit.errors import DataError
from clipit.images.device_copies import copy_ahead, stack
from clipit.images.read_ahead import ReadingClock, available_cores, read_ahead, reading_threads
from clipit.tiles.pixel_source import PixelSource
from clipit.tiles.tileset import TileSet

from .conftest import channels_first, painted_tiles

BATCHES = [np.array([0, 3, 1]), np.array([2, 2]), np.array([5])]


@pytest.fixture
def tiles(tmp_path: Path) -> TileSet:
    return painted_tiles(tmp_path, 6)


@pytest.mark.parametrize("cache", ["auto", "memory", "disk", "none"])
def test_all_caches_give_the_same_pixels(tiles: TileSet, cache: str) -> None:
    source = PixelSource(tiles, channels_first, cache, threads=2)
    expected = [np.stack([channels_first(tiles.read(row)) for row in rows]) for rows in BATCHES]
    for _ in range(2):  # the second pass reads from the cache, if any
        batches = list(source.on_device(BATCHES, torch.device("cpu")))
        assert all(rows is batch_rows for (rows, _), batch_rows in zip(batches, BATCHES, strict=True))
        assert all(
            np.array_equal(pixels.numpy(), expected_pixels)
            for (_, pixels), expected_pixels in zip(batches, expected, strict=True)
        )
        assert all(np.array_equal(a, b) for (_, a), b in zip(source.ahead(BATCHES), expected, strict=True))
    source.use_resized(np.full((6, 3, 8, 8), 7, dtype=np.uint8))
    assert (source.batch(BATCHES[0]) == 7).all()


def test_the_error_names_a_tile_that_cannot_be_resized(tiles: TileSet) -> None:
    broken = tiles.read(2).tobytes()

    def fail(image: Image.Image) -> np.ndarray:
        if image.tobytes() == broken:
            raise ValueError("no such filter")
        return channels_first(image)

    batches = PixelSource(tiles, fail, threads=2).on_device(BATCHES, torch.device("cpu"))
    assert len(next(batches)[0]) == 3
    with pytest.raises(DataError, match=r"(?s)tile 2\.png cannot be read or resized: ValueError: no such.*/2\.png"):
        next(batches)


def test_the_bytes_read_ahead_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipit.images.read_ahead._MAX_BYTES", 2000)
    started = []

    def read(item: int) -> np.ndarray:
        started.append(item)
        return np.zeros(1000, dtype=np.uint8)

    with reading_threads(1) as pool:
        stream = read_ahead([[item] for item in range(20)], read, pool, depth=6)
        seen = [(batch[0], len(started)) for batch, _ in stream]
    assert [item for item, _ in seen] == list(range(20))
    assert max(ahead - item for item, ahead in seen) <= 3, "at most the batch itself and two more"


def test_the_bottleneck_of_reading_is_named_if_more_than_a_tenth_of_the_time_is_waiting() -> None:
    def text(*, cached: bool = False, waited: float = 5.0, computing: float = 1.0, **more: Any) -> str:
        start = time.perf_counter() - 10
        clock = ReadingClock(start, waited, 1000, reading=8.0, computing=computing, threads=1, **more)
        return clock.describe("training.threads", cache=not cached, cached=cached)

    assert text(waited=0.9) == "100 tiles/s, 9% of the time waiting for tiles"
    assert "decoding and resizing limit the speed (8.0 ms per tile on 1 thread)" in text(computing=6.0)
    assert "the disk or network limits the speed" in text(blocks=9) and "local disk" in text(blocks=9)
    assert "other programs on these cores limit the speed" in text()
    assert "other programs on these cores limit the speed" in text(queued=4.0, blocks=9)
    assert "reading the cached tiles limits the speed" in text(computing=6.0, cached=True)
    assert "cache_tiles" not in text(computing=6.0, cached=True)
    assert all("training.cache_tiles=disk" in text(blocks=blocks) for blocks in (0, 9))


def test_the_clock_counts_waiting_reading_and_computing() -> None:
    clock = ReadingClock()
    with reading_threads(2) as pool:
        for _ in read_ahead([[0, 1], [2, 3]], lambda _: time.sleep(0.05), pool, clock=clock):
            pass
    assert (clock.items, clock.threads) == (4, 2)
    assert clock.reading >= 0.2 and clock.waited >= 0.05 and clock.computing < 0.1
    assert 0 < clock.share() <= 1


def test_the_clock_counts_waiting_for_a_core() -> None:
    if not Path("/proc/thread-self/schedstat").exists():
        pytest.skip("the system does not record how long threads wait for a core")
    allowed = os.sched_getaffinity(0)

    def work(_: int) -> None:
        os.sched_setaffinity(0, {min(allowed)})
        end = time.perf_counter() + 0.3
        while time.perf_counter() < end:
            sha256(bytes(2**20)).digest()  # hashing releases the global interpreter lock

    clock = ReadingClock()
    with reading_threads(2) as pool:
        list(read_ahead([[0, 1]], work, pool, clock=clock))
    assert clock.queued > 0.1, "two threads share one core for 0.3 s"
    assert clock.computing + clock.queued <= clock.reading + 0.05


def test_local_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert available_cores() == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available_cores() == 3
    assert reading_threads()._max_workers == 3


def test_an_empty_batch_keeps_its_position() -> None:
    pixels = [np.ones((3, 2, 2), dtype=np.uint8)]
    device = torch.device("cpu")
    batches = list(copy_ahead([("a", stack([], device)), ("b", stack(pixels, device))], device))
    assert [(key, len(batch)) for key, batch in batches] == [("a", 0), ("b", 1)]
