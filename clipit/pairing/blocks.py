"""Compute tables in blocks of tiles, distributed over processes and stored on disk so that a build can resume."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from clipit.distributed import get_processes
from clipit.output_files.whole_files import read_parquet, write_parquet
from clipit.progress import progress

_ROW_GROUP = 2**20  # rows per Parquet row group, pyarrow's default


def distribute(blocks: int, shards: int) -> tuple[range, range]:
    """Return the tile blocks and snippet shards whose similarities this process computes.

    The blocks are distributed over processes. If there are fewer blocks than processes, and fewer than shards, the
    shards are distributed instead.
    """
    processes = get_processes()
    if blocks >= processes.count or shards <= blocks:
        return range(processes.rank, blocks, processes.count), range(shards)
    return range(blocks), range(processes.rank, shards, processes.count)


def write_blocks(
    folder: Path, total: int, size: int, title: str, compute: Callable[[Int[np.ndarray, "_"]], pa.Table]
) -> list[Path]:
    """Write one table per block of rows, distributed over processes; existing blocks are skipped.

    Args:
        compute: Function that returns the table of a block, given its row numbers.

    Returns:
        Files of all blocks, in order, once all processes have written theirs.
    """

    def compute_each(blocks: Sequence[Int[np.ndarray, "_"]], _: bool) -> Iterator[pa.Table]:
        return (compute(rows) for rows in blocks)

    return write_passes(folder, total, size, title, compute_each, per_pass=1, shards=1)


def write_passes(
    folder: Path,
    total: int,
    size: int,
    title: str,
    compute: Callable[[Sequence[Int[np.ndarray, "_"]], bool], Iterable[pa.Table]],
    *,
    per_pass: int,
    shards: int,
) -> list[Path]:
    """Write one table per block of rows, reading the shards of a store once for several blocks.

    The missing blocks are distributed over processes. If there are fewer missing blocks than processes, and fewer than
    shards, the shards are distributed instead, and all processes compute all blocks together.

    Args:
        size: Rows per block.
        compute: Function that returns the table of each block, given the row numbers of some blocks and whether the
            shards are distributed over processes.
        per_pass: Blocks per pass.

    Returns:
        Files of all blocks, in order, once all processes have written theirs.
    """
    processes = get_processes()
    files = {start: folder / f".part-{start:09d}-{size}.parquet" for start in range(0, total, size)}
    missing = [start for start, file in files.items() if not file.is_file()]
    done = total - sum(min(size, total - start) for start in missing)
    processes.barrier()  # no process may write a block before all processes have listed the missing blocks
    own_blocks, own_shards = distribute(len(missing), shards)
    shared = len(own_shards) < shards
    with progress(title, total, shown=processes.main, done=done) as advance:
        for first in range(0, len(own_blocks), per_pass):
            starts = [missing[number] for number in own_blocks[first : first + per_pass]]
            blocks = [np.arange(start, min(start + size, total)) for start in starts]
            for start, rows, table in zip(starts, blocks, compute(blocks, shared), strict=True):
                if processes.main or not shared:
                    write_parquet(files[start], table, checksums=True)
                advance(len(rows) * (1 if shared else processes.count))
    processes.barrier()
    return list(files.values())


def read_blocks(files: Sequence[Path]) -> pa.Table:
    """Read and concatenate the tables of all blocks.

    Raises:
        ArtifactError: A block is unreadable.
    """
    return pa.concat_tables(iterate_blocks(files))


def iterate_blocks(files: Sequence[Path]) -> Iterator[pa.Table]:
    """Iterate over the tables of all blocks.

    Raises:
        ArtifactError: A block is unreadable.
    """
    for file in files:
        yield read_parquet(file, "delete this file and run the command again")


def write_tables(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write tables to one Parquet file without keeping all tables in memory.

    The file is identical to the one that `pyarrow.parquet.write_table` writes for the concatenated table.

    Args:
        tables: At least one table; all have the same columns.
    """
    pending: list[pa.Table] = []
    writer: pq.ParquetWriter | None = None
    try:
        for table in tables:
            if writer is None:
                writer = pq.ParquetWriter(path, table.schema)
            pending.append(table)
            while sum(part.num_rows for part in pending) > _ROW_GROUP:
                whole = pa.concat_tables(pending)
                writer.write_table(whole.slice(0, _ROW_GROUP))
                pending = [whole.slice(_ROW_GROUP)]
        if writer is not None:
            writer.write_table(pa.concat_tables(pending))
    finally:
        if writer is not None:
            writer.close()
