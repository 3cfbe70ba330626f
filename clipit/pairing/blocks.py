"""Tables computed in blocks of tiles, shared among processes and kept on disk so that interrupted runs resume."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from clipit.artifacts import reading, whole_file
from clipit.distributed import get_processes
from clipit.progress import progress

_ROW_GROUP = 2**20  # rows that pyarrow writes together


def shares(blocks: int, shards: int) -> tuple[range, range]:
    """Return the blocks of tiles and the shards whose products this process computes, of all blocks with all shards.

    Processes share the blocks, or the shards if there are fewer blocks than processes.
    """
    processes = get_processes()
    if blocks >= processes.count or shards <= blocks:
        return range(processes.rank, blocks, processes.count), range(shards)
    return range(blocks), range(processes.rank, shards, processes.count)


def write_blocks(
    folder: Path, total: int, size: int, title: str, compute: Callable[[Int[np.ndarray, "_"]], pa.Table]
) -> list[Path]:
    """Write one table per block of rows, shared among all processes; existing blocks are skipped.

    Args:
        folder: Folder of the artefact.
        total: Number of rows.
        size: Rows per block.
        title: Title of the progress bar.
        compute: Function from the row numbers of a block to its table.

    Returns:
        Files of all blocks, in order, once all processes have written theirs.
    """

    def each(blocks: Sequence[Int[np.ndarray, "_"]], _: bool) -> Iterator[pa.Table]:
        return (compute(rows) for rows in blocks)

    return write_passes(folder, total, size, title, each, per_pass=1, shards=1)


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
    """Write one table per block of rows, with one pass over the shards of a store for several blocks.

    The processes share the missing blocks. If there are fewer of these than processes and than shards, all processes
    compute all blocks, each from its share of the shards.

    Args:
        folder: Folder of the artefact.
        total: Number of rows.
        size: Rows per block.
        title: Title of the progress bar.
        compute: Function from the row numbers of some blocks, and whether the processes share the shards, to the table
            of each block.
        per_pass: Blocks per pass.
        shards: Number of shards.

    Returns:
        Files of all blocks, in order, once all processes have written theirs.
    """
    processes = get_processes()
    files = {start: folder / f".part-{start:09d}-{size}.parquet" for start in range(0, total, size)}
    missing = [start for start, file in files.items() if not file.is_file()]
    done = total - sum(min(size, total - start) for start in missing)
    processes.barrier()  # all processes share the same list of missing blocks
    mine, my_shards = shares(len(missing), shards)
    shared = len(my_shards) < shards
    with progress(title, total, shown=processes.main, done=done) as advance:
        for first in range(0, len(mine), per_pass):
            starts = [missing[number] for number in mine[first : first + per_pass]]
            blocks = [np.arange(start, min(start + size, total)) for start in starts]
            for start, rows, table in zip(starts, blocks, compute(blocks, shared), strict=True):
                if processes.main or not shared:
                    with whole_file(files[start]) as temporary:
                        pq.write_table(table, temporary)
                advance(len(rows) * (1 if shared else processes.count))
    processes.barrier()
    return list(files.values())


def read_blocks(files: Sequence[Path]) -> pa.Table:
    """Read and concatenate the tables of all blocks.

    Raises:
        ArtifactError: A block is unreadable.
    """
    return pa.concat_tables(each_block(files))


def each_block(files: Sequence[Path]) -> Iterator[pa.Table]:
    """Iterate over the tables of all blocks.

    Raises:
        ArtifactError: A block is unreadable.
    """
    for file in files:
        with reading(file, fix="delete this file and start again"):
            table = pq.read_table(file)
        yield table


def write_tables(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write tables to one Parquet file, as `pyarrow.parquet.write_table` does with all of them, one part at a time.

    Args:
        path: File.
        tables: Tables of the same columns, at least one.
    """
    waiting: list[pa.Table] = []
    writer: pq.ParquetWriter | None = None
    try:
        for table in tables:
            if writer is None:
                writer = pq.ParquetWriter(path, table.schema)
            waiting.append(table)
            while sum(part.num_rows for part in waiting) > _ROW_GROUP:
                whole = pa.concat_tables(waiting)
                writer.write_table(whole.slice(0, _ROW_GROUP))
                waiting = [whole.slice(_ROW_GROUP)]
        if writer is not None:
            writer.write_table(pa.concat_tables(waiting))
    finally:
        if writer is not None:
            writer.close()
