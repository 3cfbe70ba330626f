"""Read items in threads beside the model: batches in order, a bounded number of them in memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Batch = TypeVar("Batch", bound=Iterable[Any])
Result = TypeVar("Result")

_MOST_THREADS = 8


def reading_threads(count: int = 0) -> ThreadPoolExecutor:
    """Make a pool of reading threads.

    Args:
        count: Number of threads; 0: one per core, at most 8.
    """
    return ThreadPoolExecutor(count or min(_MOST_THREADS, os.cpu_count() or 1), thread_name_prefix="images")


def read_ahead(
    batches: Iterable[Batch], read: Callable[[Any], Result], pool: ThreadPoolExecutor, depth: int = 4
) -> Iterator[tuple[Batch, list[Result]]]:
    """Yield each batch with the results of its items, in order, while threads read the next batches.

    Args:
        batches: Batches of items, such as row numbers.
        read: Function that reads one item; called in the pool's threads.
        pool: Reading threads.
        depth: Number of batches that are read ahead.

    Raises:
        Exception: The first error of `read`, at the batch in which it occurs.
    """
    pending: deque[tuple[Batch, list[Future[Result]]]] = deque()

    def next_batch() -> tuple[Batch, list[Result]]:
        batch, futures = pending.popleft()
        return batch, [future.result() for future in futures]

    try:
        for batch in batches:
            pending.append((batch, [pool.submit(read, item) for item in batch]))
            if len(pending) > depth:
                yield next_batch()
        while pending:
            yield next_batch()
    finally:
        for _, futures in pending:
            for future in futures:
                future.cancel()
