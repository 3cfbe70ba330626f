"""Read items in threads while the model runs; batches stay in order, and only a few are in memory at a time.

Threads are faster than worker processes here: decoding and resizing release Python's global interpreter lock, and
nothing is copied between processes.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, TypeVar

from clipit.errors import ConfigError, counted

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

Batch = TypeVar("Batch", bound=Iterable[Any])
Result = TypeVar("Result")

logger = logging.getLogger(__name__)

_MAX_THREADS = 8
_THREAD: int | None = getattr(resource, "RUSAGE_THREAD", None)  # on Linux only
_AHEAD = 4  # batches that are read ahead
_MAX_BYTES = 2**30  # bytes of results that are read ahead; at least one batch
_GROUPS = 4  # groups of items per thread into which a batch is divided
_Cost = tuple[float, float, float, int]
"""Seconds spent reading, seconds on a core, seconds waiting for a core, and number of blocks read from disk."""
_MIN_SECONDS = 1.0  # seconds; shorter loops are not reported
_NOTABLE = 0.1
"""Fraction of time spent waiting above which remedies are logged."""


@dataclass
class ReadingClock:
    """Time that a loop spends waiting for batches, and time that threads spend reading them.

    Attributes:
        start: Time at which the clock was started, in seconds.
        waited: Time that the loop waited for items, in seconds.
        items: Number of items that the loop received.
        reading: Time spent reading items, summed over the threads, in seconds.
        computing: Part of `reading` in which a thread used a core (for decoding and resizing), in seconds.
        queued: Part of `reading` in which a thread waited for a core, if the system counts it (Linux), in seconds.
        blocks: Blocks of 512 bytes that had to be fetched from a disk or a network, if the system counts them.
    """

    start: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    items: int = 0
    reading: float = 0.0
    computing: float = 0.0
    queued: float = 0.0
    blocks: int = 0
    threads: int = 1

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return max(time.perf_counter() - self.start, 1e-9)

    def share(self) -> float:
        """Return the fraction of the time since the start that was spent waiting for items."""
        return min(self.waited / self.seconds(), 1.0)

    def report(self, title: str, threads_key: str, *, cache: bool = False, cached: bool = False) -> None:
        """Log the speed and the time spent waiting (see `describe`), unless the loop was too short to measure."""
        if self.items and self.seconds() >= _MIN_SECONDS:
            logger.info(f"{title}: {self.describe(threads_key, cache=cache, cached=cached)}")

    def describe(self, threads_key: str, *, cache: bool = False, cached: bool = False) -> str:
        """Describe the speed and the time spent waiting; if that is more than a tenth, add the bottleneck and remedies.

        Args:
            threads_key: Key or option that sets the number of threads.
            cache: Whether a cache would help: tiles are read repeatedly, and none is configured.
            cached: Whether resized tiles are read from a cache instead of being decoded.
        """
        text = f"{self.items / self.seconds():,.0f} tiles/s, {self.share():.0%} of the time waiting for tiles"
        if self.share() <= _NOTABLE or not self.items:
            return text
        per_tile = self.reading / self.items
        limit = f"{1000 * per_tile:.1f} ms per tile on {counted(self.threads, 'thread')}"
        if cached:
            text += f"; reading the cached tiles limits the speed ({limit})"
            remedies = [f"raise {threads_key}", "keep the output folder on a local disk"]
        elif self.computing >= self.reading / 2:
            text += f"; decoding and resizing limit the speed ({limit})"
            cores = available_cores()
            if self.threads < cores:
                remedies = [f"raise {threads_key} (this process may use {counted(cores, 'core')})"]
            else:
                remedies = ["use more cores per process"]
            remedies.append("store tiles at the size that the model reads")
        elif self.blocks and self.queued < (self.reading - self.computing) / 2:
            text += f"; the disk or network limits the speed ({limit})"
            remedies = ["copy the tiles to a local disk", f"raise {threads_key}"]
        else:
            text += f"; other programs on these cores limit the speed ({limit})"
            remedies = ["use more cores per process"]
        if cache:
            remedies.append("cache resized tiles (training.cache_tiles=disk)")
        return f"{text}: {', or '.join(remedies)}"


def _blocks() -> int:
    """Return the blocks that this thread has fetched from disks; 0 on systems that do not count them."""
    return resource.getrusage(_THREAD).ru_inblock if _THREAD is not None else 0


def _queued() -> float:
    """Return the seconds that this thread has waited for a core; 0 on systems that do not count them."""
    try:
        with open("/proc/thread-self/schedstat", "rb") as file:  # noqa: PTH123 - called for every few tiles
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def _thread_cost() -> _Cost:
    """Return the wall-clock time, CPU time, time waiting for a core, and blocks read, of this thread so far."""
    return time.perf_counter(), time.thread_time(), _queued(), _blocks()


def available_cores() -> int:
    """Return the number of cores that this process may use, divided by the number of processes on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def check_batches(batch_size: object, workers: object) -> None:
    """Validate the batch size and the number of reader threads.

    Raises:
        ConfigError: A value is not a whole number, or is too small.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ConfigError(f"{name} is {value!r}", where=name, fix=f"use a whole number of at least {least}")


def reading_threads(count: int = 0) -> ThreadPoolExecutor:
    """Create a pool of reader threads.

    Args:
        count: Number of threads; 0 for one per available core, at most 8.
    """
    return ThreadPoolExecutor(count or min(_MAX_THREADS, available_cores()), thread_name_prefix="images")


def bytes_ahead(batch: int) -> int:
    """Return the memory in bytes that `read_ahead` needs in addition to the batch in use.

    Args:
        batch: Size of a batch in bytes.
    """
    return batch + min(_AHEAD * batch, max(_MAX_BYTES, batch))


def read_ahead(
    batches: Iterable[Batch],
    read: Callable[[Any], Result],
    pool: ThreadPoolExecutor,
    depth: int = _AHEAD,
    clock: ReadingClock | None = None,
) -> Iterator[tuple[Batch, list[Result]]]:
    """Yield each batch with the results of its items, in order, while threads read the next batches.

    Args:
        batches: Batches of items, such as row numbers.
        read: Function that reads one item; called in the pool's threads.
        depth: Number of batches that are read ahead; fewer if their arrays take more than 1 GiB, and one
            until the first batch is read.
        clock: Clock that is advanced by the time spent waiting and reading.

    Raises:
        Exception: The first error raised by `read`, when its batch is reached.
    """
    clock = ReadingClock() if clock is None else clock
    clock.threads = pool._max_workers
    ahead = min(depth, 1)  # until the size of a batch is known
    pending: deque[tuple[Batch, list[Future[tuple[list[Result], _Cost]]]]] = deque()

    def submit(batch: Batch) -> list[Future[tuple[list[Result], _Cost]]]:
        # Submitting an item takes a tenth of the time needed to decode a small tile, so several are submitted at once.
        items = list(batch)
        size = max(1, len(items) // (_GROUPS * clock.threads))
        return [pool.submit(timed, items[first : first + size]) for first in range(0, len(items), size)]

    def timed(items: list[Any]) -> tuple[list[Result], _Cost]:
        start, used, queued, blocks = _thread_cost()
        results = [read(item) for item in items]
        end, used_then, queued_then, blocks_then = _thread_cost()
        return results, (end - start, used_then - used, queued_then - queued, blocks_then - blocks)

    def next_batch() -> tuple[Batch, list[Result]]:
        batch, futures = pending.popleft()
        before = time.perf_counter()
        outcomes = [future.result() for future in futures]
        clock.waited += time.perf_counter() - before
        results = [result for group, _ in outcomes for result in group]
        clock.items += len(results)
        for _, (seconds, computing, queued, blocks) in outcomes:
            clock.reading, clock.computing = clock.reading + seconds, clock.computing + computing
            clock.queued, clock.blocks = clock.queued + queued, clock.blocks + blocks
        return batch, results

    try:
        for batch in batches:
            pending.append((batch, submit(batch)))
            while len(pending) > ahead:
                finished = next_batch()
                size = sum(getattr(result, "nbytes", 0) for result in finished[1])
                ahead = max(1, min(depth, _MAX_BYTES // max(size, 1))) if depth else 0
                yield finished
        while pending:
            yield next_batch()
    finally:
        for _, futures in pending:
            for future in futures:
                future.cancel()
