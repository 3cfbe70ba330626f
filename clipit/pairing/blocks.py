"""Tables computed in blocks of tiles, shared among processes and kept on disk so that a killed run can resume."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from clipit.artifacts import reading, whole_file
from clipit.distributed import get_processes
from clipit.progress import progress


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
    processes = get_processes()
    files = {start: folder / f".part-{start:09d}-{size}.parquet" for start in range(0, total, size)}
    with progress(title, total, shown=processes.main) as advance:
        for start in processes.share(list(files)):
            rows = np.arange(start, min(start + size, total))
            if not files[start].is_file():
                with whole_file(files[start]) as temporary:
                    pq.write_table(compute(rows), temporary)
            advance(len(rows) * processes.count)
    processes.barrier()
    return list(files.values())


def read_blocks(files: list[Path]) -> pa.Table:
    """Read and concatenate the tables of all blocks.

    Raises:
        ArtifactError: A block is unreadable.
    """
    tables = []
    for file in files:
        with reading(file, fix="delete this file and start again"):
            tables.append(pq.read_table(file))
    return pa.concat_tables(tables)
